"""Runs every kernel once on small shapes, for the memory checkers.

compute-sanitizer --tool memcheck --error-exitcode 1 python -m zigpass.tools.sanitize_kernels
compute-sanitizer --tool racecheck ...   and   compute-sanitizer --tool initcheck ...
"""

from __future__ import annotations

import argparse

import torch

from zigpass.runtime import ColumnScales, GroupScales, QuantizedWeight, pack, reference
from zigpass.runtime.layout import COLUMN_BLOCK, COLUMN_SUPERBLOCK, ScaleAxis


def packed(
    n: int, k: int, bits: int, axis: ScaleAxis, band: int, permuted: bool = False
) -> tuple[list[torch.Tensor], str]:
    """A random weight, made on the CPU: under a checker every GPU kernel costs."""
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    if axis == "in":
        shape = (n, -(-k // 64))
        zero = torch.randint(0, 1 << bits, shape, dtype=torch.uint8)
        scales = GroupScales(torch.rand(shape).half() * 0.02, zero, "sub_int", 64)
        weight = QuantizedWeight(codes, bits, scales, torch.randperm(k).to(torch.int32) if permuted else None)
    else:
        superblocks, blocks = -(-n // COLUMN_SUPERBLOCK), -(-n // COLUMN_BLOCK)
        d, dmin = (torch.rand(superblocks, k).half() * 0.02 for _ in range(2))
        scale6, min6 = (torch.randint(0, 64, (blocks, k), dtype=torch.uint8) for _ in range(2))
        weight = QuantizedWeight(codes, bits, ColumnScales(d, dmin, scale6, min6))
    result = pack(weight, band)
    return [tensor.cuda() for tensor in result.tensors], result.layout.spec


def check(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    error = float((actual.cpu().double() - expected.double()).norm() / expected.double().norm())
    print(f"{what}: relative error {error:.2g}", flush=True)
    if not error < 2e-5:
        raise SystemExit(f"{what} is wrong")


def run_linear(n: int, k: int, bits: int, axis: ScaleAxis, rows: int, band: int, permuted: bool = False) -> None:
    tensors, spec = packed(n, k, bits, axis, band, permuted)
    x, threshold = torch.randn(rows, k), torch.full((1,), 0.5)
    actual = torch.ops.zigpass.linear(x.cuda(), tensors, None, threshold.cuda(), spec)
    cpu = [tensor.cpu() for tensor in tensors]
    check(actual, reference.linear(x, cpu, None, threshold, spec), f"{spec}, {rows} rows")


def run_mlp(k: int, middle: int, axis: ScaleAxis) -> None:
    parts = [packed(n, inputs, 4, axis, 256) for n, inputs in ((middle, k), (middle, k), (k, middle))]
    (gate, gate_spec), (up, up_spec), (down, down_spec) = parts
    specs = (gate_spec, up_spec, down_spec, "silu")
    x, threshold = torch.randn(1, k), torch.zeros(1)
    there = threshold.cuda()
    actual = torch.ops.zigpass.gated_mlp(x.cuda(), gate, up, down, None, None, None, there, there, *specs)
    gate, up, down = ([tensor.cpu() for tensor in part] for part in (gate, up, down))
    expected = reference.gated_mlp(x, gate, up, down, None, None, None, threshold, threshold, *specs)
    check(actual, expected, f"gated MLP {axis}")


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.manual_seed(0)
    for bits in (2, 4, 8):
        for rows in (1, 2, 4, 9):
            run_linear(700, 300, bits, "in", rows, 256)
    for rows in (1, 9):
        run_linear(700, 300, 4, "out", rows, 384)
        run_linear(700, 300, 4, "in", rows, 256, permuted=True)
    run_mlp(256, 640, "in")
    run_mlp(256, 640, "out")
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
