"""Thresholds that are counts (top-k) and weights that change between calls, on a GPU."""

import pytest
import torch

from zigpass.runtime import ZigpassError, reference

from .comparisons import TOLERANCE, assert_close
from .operands import DEVICE, check_linear, mlp_operands, packed, random_x

pytestmark = pytest.mark.cuda


def count_of(kept):
    return torch.tensor([kept], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kept", [0, 1, 700, 1407, 1408, 5000])
@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_linear_over_counts(dtype, kept, scale_axis):
    weight, spec = packed(1536, 1408, scale_axis=scale_axis, band=512)
    x = random_x(1, 1408, dtype=dtype)
    if kept:
        check_linear(x, weight, spec, count_of(kept), tolerance=2e-5 if dtype == torch.float32 else None)
    else:
        assert not torch.ops.zigpass.linear(x, weight, None, count_of(0), spec).any()


def test_of_equal_entries_the_first_are_read():
    weight, spec = packed(256, 512)
    check_linear(torch.ones(512, device=DEVICE), weight, spec, count_of(100), tolerance=2e-5)


def test_a_count_without_a_kernel_of_its_own():
    weight, spec = packed(256, 512, 8, "out")
    check_linear(random_x(512), weight, spec, count_of(100), tolerance=2e-5)


def test_qkv_with_a_count():
    parts = [packed(n, 1024, band=512, seed=n) for n in (2048, 512, 500)]
    weights, specs = [t for part in parts for t in part[0]], [spec for _, spec in parts]
    x = random_x(1024)
    actual = torch.ops.zigpass.qkv(x, weights, [None] * 3, count_of(300), specs)
    for a, e in zip(actual, reference.qkv(x, weights, [None] * 3, count_of(300), specs), strict=True):
        assert_close(a, e, 2e-5)


@pytest.mark.parametrize("counts", [(400, 900), (400, None), (None, 900)])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_mlp_with_counts(counts, gate, dtype):
    tensors, specs = mlp_operands(gate=gate)
    x = random_x(1, 1024, dtype=dtype)
    thresholds = [None if kept is None else count_of(kept) for kept in counts]
    operands = (x, *tensors, *thresholds, *specs, "silu")
    actual = torch.ops.zigpass.gated_mlp(*operands)
    assert torch.equal(actual, torch.ops.zigpass.gated_mlp(*operands)), "two runs differ"
    # The middle is summed in another order, so entries that are nearly equal to the last one kept may swap with it.
    assert_close(actual, reference.gated_mlp(*operands), 1e-3 if dtype == torch.float32 else 2e-2)


def test_a_captured_count_follows_its_tensor():
    tensors, specs = mlp_operands(512, 1280)
    weight, spec = packed(512, 512)
    x, count = random_x(1, 512), count_of(512)
    torch.ops.zigpass.gated_mlp(x, *tensors, count, count, *specs, "silu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.zigpass.linear(x, weight, None, count, spec)
        z = torch.ops.zigpass.gated_mlp(y, *tensors, count, count, *specs, "silu")
    for kept in (512, 100, 0, 300):
        x.copy_(random_x(1, 512, seed=kept))
        count.fill_(kept)
        graph.replay()
        assert torch.equal(y, torch.ops.zigpass.linear(x, weight, None, count, spec))
        assert torch.equal(z, torch.ops.zigpass.gated_mlp(y, *tensors, count, count, *specs, "silu"))


def test_a_weight_that_was_replaced_moved_or_shrunk_is_seen_by_the_next_call():
    weight, spec = packed(512, 512)
    other, _ = packed(512, 512, seed=5)
    x = random_x(512)
    check_linear(x, weight, spec)
    for tensor, new in zip(weight, other, strict=True):
        tensor.data = new.clone()
    torch.cuda.empty_cache()
    check_linear(x, weight, spec)
    for tensor in weight:
        tensor.data = tensor.data.cpu()
    with pytest.raises(ZigpassError, match=r"codes of .* is on cpu"):
        torch.ops.zigpass.linear(x, weight, None, None, spec)
    for tensor in weight:
        tensor.data = tensor.data.to(DEVICE)
    check_linear(x, weight, spec)
    weight[0].untyped_storage().resize_(0)
    with pytest.raises(ZigpassError, match=r"codes of .* has no memory"):
        torch.ops.zigpass.linear(x, weight, None, None, spec)


def test_x_on_the_cpu_beside_weights_on_a_gpu():
    weight, spec = packed(256, 512)
    with pytest.raises(ZigpassError, match=r"codes of .* is on cuda:0, x on cpu"):
        torch.ops.zigpass.linear(torch.zeros(512), weight, None, None, spec)


def test_a_warm_call_sees_another_threshold_bias_and_stream():
    weight, spec = packed(512, 512)
    for seed in range(4):
        x = random_x(512, seed=seed)
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            check_linear(x, weight, spec, torch.full((1,), 0.2 * seed, device=DEVICE), random_x(512, seed=seed + 9))
        torch.cuda.synchronize()
