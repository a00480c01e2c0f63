"""`qkv` on the CPU: the same bits as one `linear` per weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zigpass.runtime import ZigpassError

linear, qkv = torch.ops.zigpass.linear.default, torch.ops.zigpass.qkv.default


def make_args(cpu: Any, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    parts = [
        cpu.weight(0, 200, 96, group_size=32),
        cpu.weight(1, 70, 96, group_size=64, zero_kind="add_float", band=128),
        cpu.weight(2, 300, 96, zero_kind="column", bits=8),
    ]
    biases = [None, cpu.values(3, 70), cpu.values(4, 300, dtype=torch.bfloat16)]
    weights = [tensor for part in parts for tensor in part.tensors]
    x = cpu.values(5, rows, 96, dtype=dtype)
    return x, weights, biases, torch.tensor([0.4]), [part.layout.spec for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_equals_one_linear_per_weight(cpu: Any, rows: int, dtype: torch.dtype) -> None:
    x, weights, biases, threshold, specs = make_args(cpu, rows, dtype)
    outs = qkv(x, weights, biases, threshold, specs)
    parts = (weights[0:3], weights[3:6], weights[6:8])
    for out, part, bias, spec in zip(outs, parts, biases, specs, strict=True):
        assert torch.equal(out, linear(x, part, bias, threshold, spec))


@pytest.mark.parametrize("rows", [1, 2])
def test_opcheck(cpu: Any, rows: int) -> None:
    torch.library.opcheck(qkv, make_args(cpu, rows))


def test_left_over_tensors_are_refused(cpu: Any) -> None:
    x, weights, biases, threshold, specs = make_args(cpu, 1)
    with pytest.raises(ZigpassError, match="3 layouts, 3 biases and 9 packed tensors"):
        qkv(x, [*weights, weights[0]], biases, threshold, specs)
