"""The CUDA kernels against `reference` without a GPU: their source runs on the CPU, thread by thread (`emulator.h`)."""

import pytest
import torch

from tests.weights import random_weight
from zigpass.runtime import QuantizedWeight, pack, reference
from zigpass.runtime.cuda import calls, operators, plan
from zigpass.runtime.cuda.specialization import LaunchConfig

from . import comparisons, emulated
from .comparisons import random_x

WHY_NOT = emulated.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

EARLY = LaunchConfig(2, 2, 1, 2, early=32, early_dense=32)
NARROW = LaunchConfig(1, 4, 1, 2)
MANY_BLOCKS = LaunchConfig(1, 2, 4, 2, lockstep=True)
"""Twelve blocks of few columns, which share a tile: a reader of their sums waits more than once."""
MANY_PASSES = LaunchConfig(2, 2, 1, 2, chunk=64)
"""Two words of columns at a time."""
TOLERANCE = comparisons.TOLERANCE | {torch.float32: 2e-6}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where compiled kernels of the module are."""
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture(autouse=True)
def use(monkeypatch, compiled):
    """Put the emulated GPU in place; call it with the launch parameters of all launches."""
    emulated.install(monkeypatch, compiled)

    def use(config):
        monkeypatch.setattr(plan, "choose_config", lambda *_: config)
        plan.get_plan.cache_clear()

    use(EARLY)
    yield use
    plan.get_plan.cache_clear()
    calls.forget()


def packed(n, k, bits=4, scale_axis="in", band=512, seed=0, **scales):
    return comparisons.packed(n, k, bits, scale_axis, band, seed, **scales)


def assert_close(actual, expected, tolerance=None):
    comparisons.assert_close(actual, expected, tolerance or TOLERANCE[actual.dtype])


def check_linear(x, weight, spec, threshold=None, bias=None, tolerance=None):
    actual = operators.linear(x, weight, bias, threshold, spec)
    assert torch.equal(actual, operators.linear(x, weight, bias, threshold, spec)), "the order of warps shows"
    assert_close(actual, reference.linear(x, weight, bias, threshold, spec), tolerance)


def threshold(value):
    return torch.full((1,), float(value))


@pytest.mark.parametrize(
    "config", [EARLY, NARROW, MANY_BLOCKS, MANY_PASSES], ids=["one pass", "narrow", "many blocks", "many passes"]
)
@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_linear_over_launch_parameters_and_sparsities(use, config, scale_axis):
    use(config)
    weight, spec = packed(1100, 700, scale_axis=scale_axis, group_size=128)
    x = random_x(700)
    for value in (0.0, 0.7, 1e9):
        check_linear(x, weight, spec, threshold(value))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_linear_over_dtypes_with_bias_and_a_threshold_per_channel(dtype):
    weight, spec = packed(300, 515)
    x = random_x(1, 515, dtype=dtype)
    check_linear(x, weight, spec, torch.rand(515), random_x(300, dtype=torch.float16, seed=3))


def test_a_dense_launch():
    for scale_axis in ("in", "out"):
        weight, spec = packed(700, 300, scale_axis=scale_axis)
        check_linear(random_x(300), weight, spec)


@pytest.mark.parametrize(("bits", "zero_kind"), [(2, "sub_int"), (4, "sub_float"), (4, "add_float"), (8, "sub_int")])
def test_linear_over_bits_and_zeros(bits, zero_kind):
    weight, spec = packed(700, 300, bits, zero_kind=zero_kind, dtype=torch.bfloat16)
    check_linear(random_x(300), weight, spec, threshold(0.5))


@pytest.mark.parametrize("group_size", [48, 160, 256, 5000])
def test_linear_over_group_sizes(group_size):
    """Units of 2, 5 and 8 words, and one group of all columns."""
    weight, spec = packed(140, 1000, group_size=group_size)
    check_linear(random_x(1000), weight, spec, threshold(0.5))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (129, 31), (2700, 70), (200, 3000)])
def test_linear_over_odd_shapes(n, k):
    for band in (128, None):
        weight, spec = packed(n, k, band=band)
        check_linear(random_x(k), weight, spec, threshold(0.3), tolerance=5e-6)


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_linear_over_rows(use, rows):
    for config in (NARROW, MANY_PASSES):
        use(config)
        weight, spec = packed(300, 700, group_size=64)
        check_linear(random_x(rows, 700, dtype=torch.bfloat16), weight, spec)


def test_permuted_columns(use):
    weight = random_weight(300, 700, 4, "in", group_size=128)
    perm = torch.randperm(700, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    result = pack(QuantizedWeight(weight.codes, 4, weight.scales, perm), 256)
    for config in (EARLY, MANY_PASSES):
        use(config)
        check_linear(random_x(700), list(result.tensors), result.layout.spec, torch.rand(700))


@pytest.mark.parametrize("config", [EARLY, MANY_PASSES], ids=["one pass", "many passes"])
@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_as_in_the_reference(use, config, scale_axis, value):
    use(config)
    weight, spec = packed(700, 512, scale_axis=scale_axis, band=256)
    x = random_x(512)
    x[77] = value
    actual = operators.linear(x, weight, None, threshold(0.7), spec)
    expected = reference.linear(x, weight, None, threshold(0.7), spec)
    special = ~expected.isfinite()
    assert special.any()
    assert torch.equal(special, ~actual.isfinite())
    assert torch.equal(actual[special].nan_to_num(0.5, 1, -1), expected[special].nan_to_num(0.5, 1, -1))


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_qkv_in_one_launch(scale_axis):
    parts = [packed(n, 300, scale_axis=scale_axis, seed=n) for n in (700, 130, 257)]
    weights, specs = [t for part in parts for t in part[0]], [spec for _, spec in parts]
    operands = (weights, [random_x(700, seed=9), None, None], threshold(0.7), specs)
    x = random_x(300)
    for actual, expected in zip(operators.qkv(x, *operands), reference.qkv(x, *operands), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("config", [EARLY, MANY_BLOCKS, MANY_PASSES], ids=["one pass", "many blocks", "many passes"])
@pytest.mark.parametrize(
    ("axes", "activation"), [(("in", "in", "in"), "silu"), (("out", "out", "out"), "gelu"), (("in", "in"), "relu2")]
)
def test_gated_mlp(use, config, axes, activation):
    """Down reads the sums that the blocks of gate and up left; of two axes there is no gate."""
    use(config)
    k, middle = 256, 900
    parts = [packed(middle, k, scale_axis=axis, seed=seed) for seed, axis in enumerate(axes[:-1])]
    down, down_spec = packed(k, middle, scale_axis=axes[-1], band=256, seed=7)
    gate, gate_spec = parts[0] if len(axes) == 3 else ([], "")
    up, up_spec = parts[-1]
    biases = (random_x(middle, seed=4) * 0.1 if gate else None, random_x(middle, seed=5) * 0.1, random_x(k, seed=6))
    x, first = random_x(k), threshold(0.7)
    hidden = reference.linear(x, up, biases[1], first, up_spec)
    act = reference.ACTIVATIONS[activation]
    hidden = act(reference.linear(x, gate, biases[0], first, gate_spec)) * hidden if gate else act(hidden)
    magnitudes = hidden.abs().sort().values
    second = magnitudes[449:451].mean().reshape(1)  # between two, so that rounding flips no entry
    operands = (gate, up, down, *biases, first, second, gate_spec, up_spec, down_spec, activation)
    actual = operators.gated_mlp(x, *operands)
    assert torch.equal(actual, operators.gated_mlp(x, *operands))
    assert_close(actual, reference.gated_mlp(x, *operands), 1e-5)
