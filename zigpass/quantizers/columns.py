"""Scales along the outputs: blocks of 32 rows of a column, with 6-bit scales and minimums under fp16 units."""

from __future__ import annotations

import torch
from torch import Tensor

from zigpass.runtime import ColumnScales, QuantizedWeight, ZigpassError
from zigpass.runtime.layout import COLUMN_BLOCK, COLUMN_SUPERBLOCK

SHRINKS = tuple(1.0 - 0.025 * step for step in range(21))
"""Range factors tried by the search, as for groups of inputs."""
MAX_CHUNK = 1 << 22
"""Entries of scratch at once, weights times range factors: bounds the search to about 100 MB."""
MAX6 = 63
BLOCKS = COLUMN_SUPERBLOCK // COLUMN_BLOCK


def quantize_columns(weight: Tensor, bits: int, shrinks: tuple[float, ...]) -> QuantizedWeight:
    """Quantize float [N, K]; every column is independent of the others.

    Raises:
        ZigpassError: a scale does not fit fp16.
    """
    n, k = weight.shape
    chunk = max(1, MAX_CHUNK // (len(shrinks) * n))
    pieces = [quantize_chunk(weight[:, start : start + chunk].float(), bits, shrinks) for start in range(0, k, chunk)]
    codes, *scales = (torch.cat(part, dim=1) for part in zip(*pieces, strict=True))
    return finish(codes, bits, *scales)


def finish(codes: Tensor, bits: int, d: Tensor, dmin: Tensor, scale6: Tensor, min6: Tensor) -> QuantizedWeight:
    """Put the parts together.

    Raises:
        ZigpassError: a scale does not fit fp16.
    """
    if not bool(torch.isfinite(d).all() and torch.isfinite(dmin).all()):
        raise ZigpassError('a scale does not fit float16; use scale_axis="in" with scale_dtype="float32"')
    return QuantizedWeight(codes, bits, ColumnScales(d, dmin, scale6, min6))


def quantize_chunk(
    values: Tensor, bits: int, shrinks: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Quantize some whole columns, float32 [N, C].

    Returns:
        codes uint8 [N, C], d and dmin float16 [superblocks, C], scale6 and min6 uint8 [blocks, C].
    """
    max_code = (1 << bits) - 1
    n, columns = values.shape
    blocks = -(-n // COLUMN_BLOCK)
    grid = _pad(values, blocks).view(-1, BLOCKS, COLUMN_BLOCK, columns)
    low = grid.amin(2, keepdim=True).clamp(max=0)
    high = grid.amax(2, keepdim=True)
    factors = torch.tensor(shrinks, device=values.device).view(-1, 1, 1, 1, 1)
    scales = factors * (high - low).clamp(min=0) / max_code  # [factors, superblocks, 8, 1, C]
    minimums = -low * factors
    error = (_decode(_encode(grid, scales, minimums, max_code), scales, minimums) - grid).square().sum(3, keepdim=True)
    best = error.nan_to_num(nan=torch.inf).argmin(0, keepdim=True)
    d, scale6 = _six_bits(scales.gather(0, best)[0])
    dmin, min6 = _six_bits(minimums.gather(0, best)[0])
    codes = _encode(grid, d.float() * scale6, dmin.float() * min6, max_code)
    return (
        codes.to(torch.uint8).view(-1, columns)[:n],
        d.view(-1, columns),
        dmin.view(-1, columns),
        scale6.to(torch.uint8).view(-1, columns)[:blocks],
        min6.to(torch.uint8).view(-1, columns)[:blocks],
    )


def _pad(values: Tensor, blocks: int) -> Tensor:
    """Rows up to whole superblocks.

    A block cut short by N repeats its last row, which changes neither its range nor its best scale by much; blocks
    beyond it are zero, which leaves the units of the superblock alone.
    """
    n, columns = values.shape
    rows = -(-n // COLUMN_SUPERBLOCK) * COLUMN_SUPERBLOCK
    if rows == n:
        return values.contiguous()
    padded = values.new_zeros(rows, columns)
    padded[:n] = values
    padded[n : blocks * COLUMN_BLOCK] = values[-1]
    return padded


def _six_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative values [superblocks, 8, 1, C] as an fp16 unit per superblock and column times 0..63."""
    unit = (values.amax(1, keepdim=True) / MAX6).half()
    steps = torch.where(unit > 0, values / unit.float(), 0.0).round().clamp(0, MAX6)
    return unit, steps


def _encode(grid: Tensor, scale: Tensor, minimum: Tensor, max_code: int) -> Tensor:
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return ((grid + minimum) * inverse).round_().clamp_(0, max_code)


def _decode(codes: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return codes * scale - minimum
