"""Inputs of several rows (prefill, batches): dequantize a piece of the weight, multiply, go on to the next piece.

Thresholds do not apply here. The piece is bounded, so a large weight never exists in float32 as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..layout import BLOCK_ROWS, Layout
from .dequantize import dequantize
from .floats import FLOAT32
from .record import WeightPlan, pack_records

PIECE_BYTES = 1 << 20
"""Upper bound of a dequantized piece, unless 128 rows alone are larger: it stays in the second-level cache until it is
multiplied. 2048x2048, 32 rows of input, one thread of a busy Zen 4: pieces of 1 MB 13.6 ms, of 4 MB 17.7."""


def linear_rows(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, plan: WeightPlan) -> Tensor:
    """x W^T + bias for float32 x [..., K]; float32 [..., N]."""
    rows = x.reshape(-1, plan.k)
    if plan.layout.permuted:
        rows = rows.index_select(1, weight[3])  # into the order of the columns
    out = rows.new_empty((rows.shape[0], plan.n))
    if rows.shape[0]:
        records = pack_records([plan.record(weight, None, 0, FLOAT32)])
        buffer = rows.new_empty(_rows_per_piece(plan.layout) * plan.k)
        for start, end in _pieces(plan.layout):
            dequantize(records.buffer_info()[0], start, end, buffer.data_ptr(), end - start)
            piece = buffer[: plan.k * (end - start)].view(plan.k, end - start)
            stop = min(end, plan.n)
            torch.mm(rows, piece[:, : stop - start], out=out[:, start:stop])
        if bias is not None:
            out += bias
    return out.view(*x.shape[:-1], plan.n)


def _rows_per_piece(layout: Layout) -> int:
    """A multiple of 128, at most one band."""
    rows = PIECE_BYTES // (4 * layout.k) // BLOCK_ROWS * BLOCK_ROWS
    return min(max(rows, BLOCK_ROWS), layout.band)


def _pieces(layout: Layout) -> Iterator[tuple[int, int]]:
    """First and end rows (padded) of the pieces; none crosses a band."""
    step = _rows_per_piece(layout)
    for band in range(layout.num_bands):
        first, end = layout.band_rows(band)
        for start in range(first, end, step):
            yield start, min(start + step, end)
