import copy

import pytest
import torch
from torch import nn

from tests.models import SwiGlu
from tests.weights import random_weight
from zigpass.config import ZigzagConfig
from zigpass.linear import ZigzagLinear, find_linears, repack_
from zigpass.quantize import quantize_
from zigpass.runtime import ZigpassError, pack
from zigpass.sites import Site, dense, find_sites


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return quantize_(SwiGlu(), ZigzagConfig(group_size=32), progress=False)


def test_gate_and_up_share_their_site(mlp):
    assert mlp.gate_proj.site is mlp.up_proj.site
    assert list(find_sites(mlp)) == ["mlp_in", "mlp_mid"]


def test_casting_the_model_keeps_packed_weights(mlp):
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    mlp.half().to(torch.bfloat16)
    after = mlp.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())
    assert mlp(torch.randn(1, 64).bfloat16()).dtype == torch.bfloat16


def test_state_dict_loads_into_another_model(mlp):
    other = quantize_(SwiGlu(), ZigzagConfig(group_size=32), progress=False)
    mlp.gate_proj.site.set_threshold(0.25)
    x = torch.randn(1, 64)
    assert not torch.equal(mlp(x), other(x))
    other.load_state_dict(mlp.state_dict())
    assert torch.equal(mlp(x), other(x))
    assert other.up_proj.site.threshold.tolist() == [0.25]


def test_a_copy_keeps_its_sites_shared(mlp):
    twin = copy.deepcopy(mlp)
    assert twin.gate_proj.site is twin.up_proj.site
    assert twin.gate_proj.site is not mlp.gate_proj.site


def test_mask_rows_gives_many_rows_what_one_row_gets(mlp):
    for site in find_sites(mlp).values():
        site.set_threshold(0.3)
    x = torch.randn(5, 64)
    one_by_one = torch.cat([mlp(row[None]) for row in x])
    assert not torch.allclose(mlp(x), one_by_one, atol=1e-4)
    for site in find_sites(mlp).values():
        site.mask_rows = True
    torch.testing.assert_close(mlp(x), one_by_one)


def test_dense_sets_thresholds_aside_in_place(mlp):
    site = mlp.down_proj.site
    site.set_threshold(0.5)
    tensor = site.threshold
    with dense(mlp):
        assert site.threshold is tensor
        assert tensor.tolist() == [0.0]
    assert tensor.tolist() == [0.5]


def test_thresholds_are_checked():
    site = Site("mlp.mlp_in", "mlp_in", 64)
    with pytest.raises(ZigpassError, match=r"mlp.mlp_in: a threshold has 1 or 64 entries, got 3"):
        site.set_threshold(torch.ones(3))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ZigpassError, match=r"mlp.mlp_in: thresholds must be finite and not negative"):
            site.set_threshold(bad)
    site.set_threshold(torch.ones(64))
    assert site.threshold.shape == (64,)


def test_a_count_of_entries_instead_of_a_threshold(mlp):
    site = mlp.gate_proj.site
    site.set_threshold(torch.tensor(20, dtype=torch.int32), target_sparsity=44 / 64)
    kept = site.threshold
    assert (kept.dtype, kept.tolist(), site.target_sparsity) == (torch.int32, [20], 44 / 64)
    x = torch.randn(5, 64)
    assert (~site.inactive(x)).sum(-1).tolist() == [20] * 5
    with dense(mlp):
        assert not site.inactive(x).any()
    assert site.threshold is kept
    assert kept.tolist() == [20]
    site.mask_rows = True
    rows = mlp.gate_proj(x)
    site.mask_rows = False
    torch.testing.assert_close(rows, torch.cat([mlp.gate_proj(row) for row in x.split(1)]))
    for bad in ([65], [-1], [3, 3]):
        with pytest.raises(ZigpassError, match="a count of entries is one number up to 64"):
            site.set_threshold(torch.tensor(bad, dtype=torch.int32))
    site.set_threshold(0.5)
    assert site.threshold.dtype == torch.float32


def test_a_site_of_another_width_is_refused():
    packed = pack(random_weight(8, 16, 4, "in"))
    with pytest.raises(ZigpassError, match="site a has 32 features, the weight has K=16"):
        ZigzagLinear(packed, None, Site("a", "other", 32))


def test_backward_raises_instead_of_losing_gradients(mlp):
    x = torch.randn(1, 64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"zigpass::linear is an inference op and has no backward"):
        mlp(x).sum().backward()


def test_unknown_names_get_sites_of_their_own():
    model = quantize_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), progress=False)
    assert {name: site.kind for name, site in find_sites(model).items()} == {"0": "other", "1": "other"}


def test_repacking_keeps_the_numbers_and_the_sites():
    torch.manual_seed(0)
    mlp = quantize_(SwiGlu(hidden=64, middle=300), ZigzagConfig(group_size=32), progress=False)
    mlp.gate_proj.site.set_threshold(0.3)
    x = torch.randn(1, 64)
    expected, site = mlp(x), mlp.gate_proj.site
    repack_(mlp, 128)
    assert [linear.layout.num_bands for _, linear in find_linears(mlp)] == [3, 3, 1]
    assert mlp.up_proj.site is site
    assert torch.equal(mlp(x), expected)
    repack_(mlp, None)
    assert mlp.up_proj.layout.num_bands == 1
    with pytest.raises(ZigpassError, match="band must be a positive multiple of 128 or None, got 100"):
        repack_(mlp, 100)
