import pytest
import torch

from zigpass.config import ZigzagConfig
from zigpass.quantizers import quantize_weight
from zigpass.runtime import ZigpassError


def relative_error(weight, config):
    return float((quantize_weight(weight, config).dequantize() - weight).norm() / weight.norm())


def gaussian(n=300, k=200):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


# Upper bounds for round to nearest on a Gaussian: half a step is uniform noise of step / sqrt(12), a group spans
# about +-2.7 standard deviations over 2**bits - 1 steps.
@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize(("bits", "bound"), [(2, 0.56), (4, 0.11), (8, 0.007)])
def test_error_is_that_of_the_bits(scale_axis, bits, bound):
    config = ZigzagConfig(bits=bits, scale_axis=scale_axis, method="rtn")
    assert bound / 3 < relative_error(gaussian(), config) < bound


@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_search_beats_the_full_range(scale_axis, bits):
    rtn, mse = (ZigzagConfig(bits=bits, scale_axis=scale_axis, method=method) for method in ("rtn", "mse"))
    assert relative_error(gaussian(), mse) < 0.98 * relative_error(gaussian(), rtn)


@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (37, 100), (576, 36), (129, 33)])
def test_odd_sizes(scale_axis, n, k):
    config = ZigzagConfig(scale_axis=scale_axis, group_size=32)
    weight = gaussian(n, k)
    assert relative_error(weight, config) < 0.2
    assert quantize_weight(weight, config).codes.shape == (n, k)


def test_values_on_a_grid_are_kept():
    codes = torch.randint(0, 16, (64, 128), generator=torch.Generator().manual_seed(1))
    codes[:, 0], codes[:, 1] = 0, 15
    weight = 0.25 * (codes - 7)
    assert torch.equal(quantize_weight(weight, ZigzagConfig()).dequantize(), weight)


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_zeros_stay_zero(scale_axis):
    assert not quantize_weight(torch.zeros(40, 64), ZigzagConfig(scale_axis=scale_axis)).dequantize().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_weights(dtype):
    assert relative_error(gaussian().to(dtype), ZigzagConfig(method="rtn")) < 0.11


def test_a_scale_too_large_for_its_dtype_is_refused():
    with pytest.raises(ZigpassError, match='does not fit float16; use scale_dtype="float32"'):
        quantize_weight(gaussian() * 1e7, ZigzagConfig())
    assert relative_error(gaussian() * 1e7, ZigzagConfig(scale_dtype="float32")) < 0.12
    with pytest.raises(ZigpassError, match='use scale_axis="in"'):
        quantize_weight(gaussian() * 1e9, ZigzagConfig(scale_axis="out"))
