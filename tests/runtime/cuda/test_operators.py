"""The CUDA operators against `reference`, on a GPU."""

import copy

import pytest
import torch

from tests.weights import random_weight
from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError, pack, reference
from zigpass.runtime.reference import ACTIVATIONS

from .comparisons import TOLERANCE, assert_close
from .operands import (
    DEVICE,
    PREFILL_TOLERANCE,
    check_linear,
    mlp_operands,
    packed,
    random_x,
    threshold_for,
)

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sparsity", [None, 0, 0.01, 0.25, 0.5, 0.9, 1])
@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_linear_over_sparsity(dtype, sparsity, scale_axis):
    weight, spec = packed(1536, 1408, scale_axis=scale_axis, band=512, group_size=128)
    x = random_x(1, 1408, dtype=dtype)
    check_linear(x, weight, spec, None if sparsity is None else threshold_for(x, sparsity))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_kind", ["sub_int", "sub_float", "add_float"])
@pytest.mark.parametrize("scale_dtype", TOLERANCE)
@pytest.mark.parametrize("group_size", [32, 128])
def test_linear_over_formats(bits, zero_kind, scale_dtype, group_size):
    weight, spec = packed(640, 512, bits, band=384, zero_kind=zero_kind, dtype=scale_dtype, group_size=group_size)
    x = random_x(512)
    check_linear(x, weight, spec, threshold_for(x, 0.5))
    check_linear(x, weight, spec)


@pytest.mark.parametrize("group_size", [8, 16, 32, 48, 64, 96, 100, 128, 256, 1000, 5000])
def test_linear_over_group_sizes(group_size):
    weight, spec = packed(300, 1000, group_size=group_size)
    x = random_x(1000)
    check_linear(x, weight, spec, threshold_for(x, 0.4))


@pytest.mark.parametrize("band", [128, 256, 384, 512, 640, 1024, None])
@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_linear_over_bands(band, scale_axis, bits):
    weight, spec = packed(2700, 700, bits, scale_axis, band)
    x = random_x(700)
    tolerance = 2e-5 if scale_axis == "out" else None
    check_linear(x, weight, spec, threshold_for(x, 0.5), tolerance=tolerance)
    check_linear(x, weight, spec, tolerance=tolerance)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 4096), (5000, 1), (127, 33), (129, 31), (11008, 515), (333, 8191)])
@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_linear_over_odd_shapes(n, k, scale_axis):
    weight, spec = packed(n, k, scale_axis=scale_axis)
    x = random_x(k)
    check_linear(x, weight, spec, threshold_for(x, 0.3), tolerance=3e-5)


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_linear_with_a_threshold_per_channel_and_bias(scale_axis):
    weight, spec = packed(512, 2048, scale_axis=scale_axis, band=256)
    x = random_x(1, 1, 2048, dtype=torch.bfloat16)
    thresholds = torch.rand(2048, device=DEVICE)
    for dtype in TOLERANCE:
        check_linear(x, weight, spec, thresholds, random_x(512, dtype=dtype, seed=3))


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 7, 8, 9, 40])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_linear_over_rows_ignores_the_threshold(rows, dtype, bits):
    weight, spec = packed(900, 1100, bits, band=512, group_size=64)
    x = random_x(rows, 1100, dtype=dtype)
    tolerance = PREFILL_TOLERANCE[dtype] if rows > 8 else None
    check_linear(x, weight, spec, torch.full((1,), 1e9, device=DEVICE), random_x(900, seed=5), tolerance)


@pytest.mark.parametrize("rows", [2, 6, 12])
def test_linear_over_rows_with_column_scales(rows):
    weight, spec = packed(900, 1100, 4, "out", band=256)
    check_linear(random_x(rows, 1100, dtype=torch.float16), weight, spec, tolerance=2e-3)


def permuted(n, k, group_size=128, band=256, seed=0):
    weight = random_weight(n, k, 4, "in", group_size=group_size, seed=seed)
    weight.scales.scale.mul_(0.02)
    perm = torch.randperm(k, generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    result = pack(QuantizedWeight(weight.codes, 4, weight.scales, perm), band)
    return [tensor.to(DEVICE) for tensor in result.tensors], result.layout.spec


@pytest.mark.parametrize("rows", [1, 2, 5, 12])
@pytest.mark.parametrize("group_size", [32, 48, 128])
def test_permuted_columns(rows, group_size):
    weight, spec = permuted(700, 1100, group_size)
    x = random_x(rows, 1100)
    check_linear(x, weight, spec, tolerance=2e-5)
    for threshold in (threshold_for(x, 0.5), torch.rand(1100, device=DEVICE)):
        check_linear(x, weight, spec, threshold, tolerance=2e-5)


def test_permuted_columns_of_a_gated_mlp_and_of_qkv():
    gate, up, down = permuted(2816, 1024, seed=1), permuted(2816, 1024, seed=2), permuted(1024, 2816, seed=3)
    tensors, specs = (gate[0], up[0], down[0], None, None, None), (gate[1], up[1], down[1])
    check_mlp(random_x(1024), tensors, specs, 0.5, tolerance=5e-5)
    check_mlp(
        random_x(1024), (packed(2816, 1024)[0], *tensors[1:]), (packed(2816, 1024)[1], *specs[1:]), 0.5, tolerance=5e-5
    )
    x = random_x(1024)
    operands = ([*gate[0], *up[0]], [None, None], threshold_for(x, 0.5), [gate[1], up[1]])
    for a, e in zip(torch.ops.zigpass.qkv(x, *operands), reference.qkv(x, *operands), strict=True):
        assert_close(a, e, 2e-5)


def test_prefill_larger_than_its_workspace():
    weight, spec = packed(2500, 16384, band=1024)
    check_linear(random_x(10, 16384), weight, spec)


def test_no_rows():
    weight, spec = packed(64, 64)
    assert torch.ops.zigpass.linear(random_x(0, 64), weight, None, None, spec).shape == (0, 64)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_magnitudes_of_x(scale, scale_axis):
    weight, spec = packed(256, 512, scale_axis=scale_axis)
    check_linear(random_x(512) * scale, weight, spec, tolerance=2e-5)


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_one_huge_outlier_leaves_the_rest_exact(scale_axis):
    weight, spec = packed(256, 512, scale_axis=scale_axis)
    x = random_x(512)
    x[100] = 3e4
    check_linear(x, weight, spec, threshold_for(x, 0.5), tolerance=2e-5)


def test_subnormal_and_zero_x():
    weight, spec = packed(256, 512)
    assert torch.equal(
        torch.ops.zigpass.linear(torch.zeros(512, device=DEVICE), weight, None, None, spec),
        torch.zeros(256, device=DEVICE),
    )
    tiny = (random_x(512) * 1e-6).half()
    check_linear(tiny, weight, spec)
    smallest = torch.full((512,), 1e-44, device=DEVICE)
    assert torch.ops.zigpass.linear(smallest, weight, None, None, spec).abs().max() < 1e-38


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_what_is_not_finite_spreads_as_in_the_reference(value, scale_axis, dtype, rows):
    weight, spec = packed(700, 512, scale_axis=scale_axis, band=256)
    x = random_x(rows, 512, dtype=dtype)
    x[0, 77] = value
    for threshold in (None, threshold_for(random_x(512), 0.5)):
        actual = torch.ops.zigpass.linear(x, weight, None, threshold, spec)
        expected = reference.linear(x, weight, None, threshold, spec)
        special = ~expected.isfinite()
        assert special.any()
        assert torch.equal(special, ~actual.isfinite())
        assert torch.equal(actual[special].nan_to_num(0.5, 1, -1), expected[special].nan_to_num(0.5, 1, -1))
        if rows > 1:  # the other rows are finite; nothing is in the row itself
            assert_close(actual[~special], expected[~special], 2e-5 if dtype == torch.float32 else None)


def test_what_is_not_finite_in_the_middle_of_an_mlp_reaches_every_output():
    tensors, specs = mlp_operands()
    x = random_x(1024)
    x[5] = float("nan")
    assert torch.ops.zigpass.gated_mlp(x, *tensors, None, None, *specs, "silu").isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize("rows", [1, 3])
def test_qkv_in_one_launch(dtype, scale_axis, rows):
    parts = [packed(n, 1024, scale_axis=scale_axis, band=512, seed=n) for n in (2048, 512, 500)]
    weights, specs = [t for part in parts for t in part[0]], [spec for _, spec in parts]
    biases = [random_x(2048, seed=9), None, random_x(500, dtype=torch.float16, seed=10)]
    x = random_x(rows, 1024, dtype=dtype)
    threshold = threshold_for(x, 0.5)
    actual = torch.ops.zigpass.qkv(x, weights, biases, threshold, specs)
    for a, e in zip(actual, reference.qkv(x, weights, biases, threshold, specs), strict=True):
        assert_close(a, e, 2e-5 if dtype == torch.float32 else None)


def test_qkv_of_different_kinds_and_of_many():
    parts = [
        packed(256, 512),
        packed(128, 512, 8),
        packed(384, 512, scale_axis="out"),
        *[packed(128, 512, seed=s) for s in range(4)],
    ]
    weights, specs = [t for part in parts for t in part[0]], [spec for _, spec in parts]
    x = random_x(512)
    biases = [None] * len(parts)
    actual = torch.ops.zigpass.qkv(x, weights, biases, threshold_for(x, 0.3), specs)
    for a, e in zip(actual, reference.qkv(x, weights, biases, threshold_for(x, 0.3), specs), strict=True):
        assert_close(a, e, 2e-5)


def middle_of(x, tensors, threshold, specs, activation):
    gate, up, _, gate_bias, up_bias, _ = tensors
    middle = reference.linear(x.float(), up, up_bias, threshold, specs[1])
    act = ACTIVATIONS[activation]
    return act(reference.linear(x.float(), gate, gate_bias, threshold, specs[0])) * middle if gate else act(middle)


def check_mlp(x, tensors, specs, sparsity, activation="silu", tolerance=None):
    thresholds = (None, None)
    if sparsity is not None:
        first = threshold_for(x, sparsity)
        thresholds = (first, threshold_for(middle_of(x, tensors, first, specs, activation), sparsity))
    actual = torch.ops.zigpass.gated_mlp(x, *tensors, *thresholds, *specs, activation)
    assert torch.equal(actual, torch.ops.zigpass.gated_mlp(x, *tensors, *thresholds, *specs, activation))
    assert_close(actual, reference.gated_mlp(x, *tensors, *thresholds, *specs, activation), tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sparsity", [None, 0, 0.01, 0.25, 0.5, 0.9, 1])
def test_gated_mlp_over_sparsity(dtype, sparsity):
    check_mlp(
        random_x(1, 1024, dtype=dtype), *mlp_operands(), sparsity, tolerance=3e-5 if dtype == torch.float32 else None
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_gated_mlp_over_activations(activation, gate, biases):
    tensors, specs = mlp_operands(gate=gate, biases=biases)
    check_mlp(random_x(1024), tensors, specs, 0.5, activation, 3e-5)


@pytest.mark.parametrize(
    "axes", [("in", "in", "out"), ("out", "out", "in"), ("out", "out", "out"), ("in", "out", "in")]
)
@pytest.mark.parametrize("bands", [(256, 1024, 128), (None, 384, None)])
def test_gated_mlp_over_axes_and_bands(axes, bands):
    check_mlp(random_x(1024), *mlp_operands(axes=axes, bands=bands), 0.5, tolerance=5e-5)


@pytest.mark.parametrize("rows", [2, 5, 8, 20])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gated_mlp_over_rows_is_dense(rows, bits):
    tensors, specs = mlp_operands(bits=bits)
    x = random_x(rows, 1024, dtype=torch.bfloat16)
    thresholds = (torch.full((1,), 1e9, device=DEVICE),) * 2
    actual = torch.ops.zigpass.gated_mlp(x, *tensors, *thresholds, *specs, "silu")
    expected = reference.gated_mlp(x, *tensors, *thresholds, *specs, "silu")
    assert_close(actual, expected, PREFILL_TOLERANCE[torch.bfloat16] if rows > 8 else None)


def test_gated_mlp_with_a_threshold_per_channel():
    tensors, specs = mlp_operands()
    x = random_x(1024)
    thresholds = (torch.rand(1024, device=DEVICE), torch.rand(2816, device=DEVICE) * 1e-3)
    actual = torch.ops.zigpass.gated_mlp(x, *tensors, *thresholds, *specs, "silu")
    assert_close(actual, reference.gated_mlp(x, *tensors, *thresholds, *specs, "silu"), 1e-4)


def test_ops_pass_opcheck():
    weight, spec = packed(256, 512)
    tensors, specs = mlp_operands(256, 512)
    x, threshold = random_x(1, 512), torch.full((1,), 0.5, device=DEVICE)
    torch.library.opcheck(torch.ops.zigpass.linear.default, (x, weight, None, threshold, spec))
    torch.library.opcheck(torch.ops.zigpass.qkv.default, (x, weight * 2, [None, None], threshold, [spec, spec]))
    mlp = (random_x(1, 256), *tensors, threshold, threshold, *specs, "silu")
    torch.library.opcheck(torch.ops.zigpass.gated_mlp.default, mlp)


def test_operands_that_do_not_fit_are_refused_before_a_launch():
    weight, spec = packed(256, 512)
    x = random_x(512)

    def call(x=x, weight=weight, bias=None, threshold=None):
        return torch.ops.zigpass.linear(x, weight, bias, threshold, spec)

    with pytest.raises(ZigpassError, match=r"x has dtype torch.float64"):
        call(x.double())
    with pytest.raises(ZigpassError, match="x has 511 features"):
        call(x[1:])
    with pytest.raises(ZigpassError, match=r"codes of .* is on cpu"):
        call(weight=[weight[0].cpu(), *weight[1:]])
    shifted = torch.empty(weight[0].numel() + 1, dtype=torch.int32, device=DEVICE)[1:]
    with pytest.raises(ZigpassError, match="aligned to 16 bytes"):
        call(weight=[shifted, *weight[1:]])
    with pytest.raises(ZigpassError, match=r"zero of .* is torch.float16"):
        call(weight=[weight[0], weight[1], weight[2].half()])
    with pytest.raises(ZigpassError, match=r"threshold is torch.float64"):
        call(threshold=torch.zeros(1, device=DEVICE, dtype=torch.float64))
    with pytest.raises(ZigpassError, match=r"threshold is torch.float32 on cpu"):
        call(threshold=torch.zeros(1))
    with pytest.raises(ZigpassError, match=r"bias of .* is torch.float32 .3,."):
        call(bias=torch.zeros(3, device=DEVICE))
    check_linear(x, weight, spec)


def test_zero_scales_of_padding_do_not_leak():
    weight = random_weight(130, 256, 4, "in")
    scales = weight.scales
    loud = QuantizedWeight(weight.codes, 4, GroupScales(scales.scale * 100, copy.copy(scales.zero), "sub_int", 32))
    result = pack(loud, 128)
    check_linear(random_x(256), [t.to(DEVICE) for t in result.tensors], result.layout.spec)
