"""The definition itself, against products written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.weights import random_weight
from zigpass.runtime import QuantizedWeight, ZigpassError, ops, pack, reference


def packed(n, k, seed=0, **kwargs):
    weight = random_weight(n, k, 4, "in", seed=seed, **kwargs)
    result = pack(weight)
    return weight.dequantize(), list(result.tensors), result.layout.spec


def test_linear_reads_only_active_entries_of_one_row():
    dense, tensors, spec = packed(20, 40)
    x = torch.randn(40)
    masked = torch.where(x.abs() < 0.7, 0, x)
    y = reference.linear(x, tensors, None, torch.tensor([0.7]), spec)
    torch.testing.assert_close(y, dense @ masked)


def test_more_rows_run_dense():
    dense, tensors, spec = packed(20, 40)
    x = torch.randn(2, 40)
    y = reference.linear(x, tensors, None, torch.tensor([100.0]), spec)
    torch.testing.assert_close(y, x @ dense.T)


def test_threshold_may_differ_by_column():
    dense, tensors, spec = packed(20, 40)
    x, threshold = torch.ones(1, 40), torch.arange(40.0) / 20
    y = reference.linear(x, tensors, None, threshold, spec)
    torch.testing.assert_close(y, dense[:, :21].sum(1)[None])


def test_an_entry_equal_to_the_threshold_is_active_and_nan_stays():
    x = torch.tensor([0.5, -0.5, 0.4999, float("nan"), 0.0])
    masked = reference.mask_inactive(x, torch.tensor([0.5]))
    assert masked[:3].tolist() == [0.5, -0.5, 0.0]
    assert masked[3].isnan()
    assert torch.equal(reference.mask_inactive(x[:3], torch.zeros(1)), x[:3])


def test_a_count_keeps_the_largest_entries_of_each_row_and_the_first_of_equal_ones():
    x = torch.tensor([[1.0, -3.0, 2.0, -2.0, 0.0], [0.0, 0.0, 0.0, 5.0, 0.0]])
    mask = reference.inactive(x, torch.tensor([2], dtype=torch.int32))
    assert (~mask).int().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 1, 0]]
    assert reference.inactive(x, torch.tensor([0], dtype=torch.int32)).all()
    assert not reference.inactive(x, torch.tensor([5], dtype=torch.int32)).any()
    masked = reference.mask_inactive(torch.tensor([float("nan"), 3.0, 4.0]), torch.tensor([2], dtype=torch.int32))
    assert masked[0].isnan()
    assert masked[1:].tolist() == [0.0, 4.0]


def test_a_count_is_one_number_on_any_device():
    _, tensors, spec = packed(20, 40)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1, 40, device="cuda")
        assert ops.check_linear(x, tensors, torch.tensor([3], dtype=torch.int32), spec).k == 40
        with pytest.raises(ZigpassError, match="a count has one entry, got 40"):
            ops.check_linear(x, tensors, torch.ones(40, dtype=torch.int32), spec)


def test_qkv_is_several_linears():
    weights = [packed(n, 40, seed) for seed, n in enumerate((20, 8, 8))]
    x = torch.randn(1, 40)
    flat = [tensor for _, tensors, _ in weights for tensor in tensors]
    biases = [None, torch.randn(8), None]
    results = reference.qkv(x, flat, biases, torch.tensor([0.5]), [spec for *_, spec in weights])
    for result, (_, tensors, spec), bias in zip(results, weights, biases, strict=True):
        assert torch.equal(result, reference.linear(x, tensors, bias, torch.tensor([0.5]), spec))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", sorted(reference.ACTIVATIONS))
def test_gated_mlp_masks_x_and_the_middle(activation, gated):
    gate, up, down = packed(24, 40, 0), packed(24, 40, 1), packed(40, 24, 2)
    x, bias = torch.randn(1, 40), torch.randn(40)
    threshold_in, threshold_mid = torch.tensor([0.5]), torch.tensor([2.0])
    act = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
        "relu": F.relu,
        "relu2": lambda v: F.relu(v) ** 2,
    }[activation]
    xm = torch.where(x.abs() < 0.5, 0, x)
    middle = act(xm @ gate[0].T) * (xm @ up[0].T) if gated else act(xm @ up[0].T)
    expected = torch.where(middle.abs() < 2.0, 0, middle) @ down[0].T + bias
    y = reference.gated_mlp(
        x, gate[1] if gated else [], up[1], down[1], None, None, bias, threshold_in, threshold_mid,
        gate[2] if gated else "", up[2], down[2], activation,
    )  # fmt: skip
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_come_in_the_dtype_of_x(dtype):
    dense, tensors, spec = packed(20, 40)
    x = torch.randn(1, 40).to(dtype)
    y = reference.linear(x, tensors, None, None, spec)
    assert y.dtype == dtype
    assert torch.equal(y, (x.float() @ dense.T).to(dtype))


def test_permuted_columns_and_their_thresholds_stay_in_the_order_of_x():
    weight = random_weight(20, 40, 4, "in")
    perm = torch.randperm(40, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    weight = QuantizedWeight(weight.codes, 4, weight.scales, perm)
    result = pack(weight)
    x, threshold = torch.ones(1, 40), torch.arange(40.0) / 20
    y = reference.linear(x, list(result.tensors), None, threshold, result.layout.spec)
    torch.testing.assert_close(y, weight.dequantize()[:, :21].sum(1)[None])
    with pytest.raises(ZigpassError, match=r"perm of .* is torch.int64"):
        ops.check_linear(x, [*result.tensors[:3], perm.long()], None, result.layout.spec)
