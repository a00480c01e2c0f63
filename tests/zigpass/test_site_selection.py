import pytest

from zigpass.runtime import ZigpassError
from zigpass.site_selection import MLP_SITES, choose_sites, values_by_site
from zigpass.sites import Site

SITES = [Site(f"layers.{layer}.{kind}", kind, 8) for layer in range(2) for kind in ("attn_in", "mlp_in", "mlp_mid")]


def test_kinds_and_patterns():
    assert choose_sites(SITES, None) == {site.name for site in SITES}
    assert choose_sites(SITES, MLP_SITES) == {site.name for site in SITES if site.kind != "attn_in"}
    assert choose_sites(SITES, ["layers.1.*"]) == {"layers.1.attn_in", "layers.1.mlp_in", "layers.1.mlp_mid"}
    assert choose_sites(SITES, "mlp_mid") == {"layers.0.mlp_mid", "layers.1.mlp_mid"}


def test_the_last_pattern_that_fits_wins():
    values = values_by_site(SITES, {"mlp_in": 0.25, "layers.1.mlp_in": 0.5}, "pinned")
    assert values == {"layers.0.mlp_in": 0.25, "layers.1.mlp_in": 0.5}


def test_a_pattern_without_site_names_the_nearest():
    with pytest.raises(ZigpassError, match="sites: 'mlp_inn' fits no site; the nearest is 'mlp_in'"):
        choose_sites(SITES, ["mlp_inn"])
    with pytest.raises(ZigpassError, match=r"pinned: 'layers.7.\*' fits no site"):
        values_by_site(SITES, {"layers.7.*": 0.1}, "pinned")


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_values_outside_their_range(value):
    with pytest.raises(ZigpassError, match="pinned: 'mlp_in' must be at least 0 and below 1"):
        values_by_site(SITES, {"mlp_in": value}, "pinned")
