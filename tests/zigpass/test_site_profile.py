import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.calibrate import calibrate
from zigpass.histogram import MagnitudeHistogram
from zigpass.site_profile import coarse, decode_steps, layer_of, profile_sites
from zigpass.sites import find_sites


def test_realized_sparsity_is_counted_where_it_applies():
    model = quantized_tiny_llama()
    calibrate(model, random_tokens(600), 0.4, allocation="uniform", window=96, progress=False)
    sites = profile_sites(model, decode_steps(model, random_tokens(128, seed=1).reshape(2, 64)))
    assert [site.name for site in sites] == list(find_sites(model))
    for site in sites:
        assert site.target_sparsity == pytest.approx(0.4)
        assert site.realized_sparsity == pytest.approx(0.4, abs=0.15)
        assert site.num_values == 2 * 31 * site.features  # the second half of each window, less the last token
    assert [site.layer for site in sites if site.kind == "mlp_mid"] == [0, 1]
    (site,) = [site for site in sites if site.name == "model.layers.1.mlp.mlp_in"]
    assert site.readers == ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")


def test_shares_are_exact():
    model = quantized_tiny_llama(threshold=0.3)
    x = torch.zeros(1, 1, 96)
    x[..., :24] = 1.0
    (site,) = profile_sites(model, [lambda: model.model.layers[0].mlp.down_proj(x)])
    assert (site.name, site.realized_sparsity, site.num_values) == ("model.layers.0.mlp.mlp_mid", 0.75, 96)
    assert site.counts == (24,)  # zeros have no place on a logarithmic axis
    assert site.edges == (1.0, 1.25)


def test_coarse_bins_hold_what_was_counted():
    histogram = MagnitudeHistogram()
    histogram.add(torch.tensor([0.0, 0.5, 0.5, 0.6, 3.0]))
    edges, counts = coarse(histogram)
    assert (edges[0], edges[1], edges[-1]) == (0.5, 0.625, 3.5)
    assert counts[0] == 3
    assert sum(counts) == 4
    assert coarse(MagnitudeHistogram()) == ([], [])


@pytest.mark.parametrize(("name", "layer"), [("model.layers.3.mlp.mlp_in", 3), ("lm_head", None)])
def test_layer_of(name, layer):
    assert layer_of(name) == layer
