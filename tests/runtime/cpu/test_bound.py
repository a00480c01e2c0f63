"""What is remembered of a weight between calls is never used for another one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zigpass.runtime import ZigpassError, reference

linear = torch.ops.zigpass.linear.default


def assert_follows(args: tuple[Any, ...]) -> None:
    torch.testing.assert_close(linear(*args), reference.linear(*args), rtol=1e-4, atol=1e-4)


def test_values_changed_in_place(cpu: Any) -> None:
    packed, other = (cpu.weight(seed, 130, 64) for seed in (0, 1))
    args = (cpu.values(2, 1, 64), list(packed.tensors), cpu.values(3, 130), None, packed.layout.spec)
    assert_follows(args)
    for tensor, value in zip((*packed.tensors, args[2]), (*other.tensors, cpu.values(4, 130)), strict=True):
        tensor.copy_(value)
        assert_follows(args)


def test_data_moved_under_the_same_tensor(cpu: Any) -> None:
    packed, other = (cpu.weight(seed, 130, 64) for seed in (0, 1))
    args = (cpu.values(2, 1, 64), list(packed.tensors), None, None, packed.layout.spec)
    assert_follows(args)
    for tensor, value in zip(packed.tensors, other.tensors, strict=True):
        tensor.data = value.clone()
        assert_follows(args)


def test_a_weight_in_the_memory_of_a_freed_one(cpu: Any) -> None:
    for seed in range(20):
        packed = cpu.weight(seed, 130, 64, zero_kind=("sub_int", "add_float")[seed % 2])
        assert_follows((cpu.values(2, 1, 64), list(packed.tensors), None, None, packed.layout.spec))
        del packed


def test_the_same_codes_with_other_scales_bias_or_layout(cpu: Any) -> None:
    first, second = cpu.weight(0, 128, 64), cpu.weight(1, 128, 64)
    codes, scale, zero = first.tensors
    x, spec = cpu.values(2, 1, 64), first.layout.spec
    assert_follows((x, [codes, scale, zero], None, None, spec))
    assert_follows((x, [codes, second.tensors[1], zero], None, None, spec))
    assert_follows((x, [codes, scale, zero], cpu.values(3, 128), None, spec))
    assert_follows((x, [codes, scale, zero], cpu.values(4, 128).half(), None, spec))
    assert_follows((x, [codes, scale, zero.half()], None, None, spec.replace("sub_int", "sub_float")))
    with pytest.raises(ZigpassError, match=r"codes .* shape"):
        linear(cpu.values(2, 1, 128), [codes, scale, zero], None, None, spec.replace("128x64", "128x128"))


def test_a_tensor_made_smaller_in_place(cpu: Any) -> None:
    packed = cpu.weight(0, 130, 64)
    args = (cpu.values(2, 1, 64), list(packed.tensors), None, None, packed.layout.spec)
    assert_follows(args)
    packed.tensors[0].resize_(8)
    with pytest.raises(ZigpassError, match=r"codes .* shape"):
        linear(*args)


def test_other_objects_over_the_same_memory(cpu: Any) -> None:
    packed = cpu.weight(0, 130, 64, zero_kind="add_float")
    codes, scale, zero = packed.tensors
    x, spec = cpu.values(2, 1, 64), packed.layout.spec
    assert_follows((x, [codes, scale, zero], None, None, spec))
    assert_follows((x, [codes, scale.view(torch.bfloat16), zero], None, None, spec))
    assert_follows((x, [codes.view_as(codes), scale, zero], None, None, spec))
    with pytest.raises(ZigpassError, match=r"codes .* dtype torch.float32"):
        linear(x, [codes.view(torch.float32), scale, zero], None, None, spec)


def test_a_bias_that_moves_to_another_weight(cpu: Any) -> None:
    parts = [cpu.weight(seed, 130, 64) for seed in (0, 1)]
    weights, specs = [tensor for part in parts for tensor in part.tensors], [part.layout.spec for part in parts]
    x, bias = cpu.values(2, 1, 64), cpu.values(3, 130)
    for biases in ([bias, None], [None, bias], [None, None], [bias, bias], [None, bias]):
        args = (x, weights, biases, None, specs)
        for y, expected in zip(torch.ops.zigpass.qkv(*args), reference.qkv(*args), strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_weights_seen_by_one_op_are_checked_for_another(cpu: Any) -> None:
    parts = [cpu.weight(seed, n, 64) for seed, n in ((0, 32), (1, 96), (2, 64))]
    x, specs = cpu.values(2, 1, 64), [part.layout.spec for part in parts]
    torch.ops.zigpass.qkv(x, [tensor for part in parts for tensor in part.tensors], [None] * 3, None, specs)
    down, up, gate = (list(part.tensors) for part in parts)
    with pytest.raises(ZigpassError, match="different row counts"):
        torch.ops.zigpass.gated_mlp(
            x, gate, up, down, None, None, None, None, None, specs[2], specs[1], specs[0], "silu"
        )
