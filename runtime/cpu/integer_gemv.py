"""Matrix times vector over the active columns in integers: what gemv.py does, for CPUs with wide integer registers.

Columns are added in passes of up to 16; a pass goes down the rows block by block (dot_tile.py). The order of the sums
depends only on the list of active columns: not on the rows that a thread takes, not on the band, not on how many inputs
(rows of x) are multiplied together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import uint64

from ..layout import BLOCK_ROWS
from .compile import jit_for
from .dot_tile import Tile
from .integer_columns import make_column_rows
from .integer_groups import make_group_rows
from .integer_pass import make_add_pass
from .memory import load
from .record import BAND, COLUMN_SCALES, ZERO_KIND, K, N


def make_integer_gemv(tile: type[Tile]) -> Callable[..., Any]:
    """`integer_gemv` for a kind of CPU."""
    add_pass = make_add_pass(tile)
    column_rows, group_rows = make_column_rows(tile, add_pass), make_group_rows(tile, add_pass)

    @jit_for(tile.name)
    def integer_gemv(record: int, inputs: int, first_row: int, end_row: int, out: np.ndarray) -> None:
        """out[r, row - first_row] = sum of W[row, k] * x[r, k] over the active k, for rows first_row..end_row.

        Args:
            record: int64 pointer to the weight's record.
            inputs: int64 pointer to the inputs block.
            first_row, end_row: multiples of 128 within the padded N.
            out: float32 [rows of x * (end_row - first_row)].
        """
        padded_n = (load(record, uint64(N)) + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
        band, out_rows = load(record, uint64(BAND)), end_row - first_row
        first_record = 0
        for band_row in range(0, padded_n, band):
            band_end = min(band_row + band, padded_n)
            start, end = max(first_row, band_row), min(end_row, band_end)
            if load(record, uint64(ZERO_KIND)) == COLUMN_SCALES:
                if start < end:
                    column_rows(record, inputs, band_row, band_end, first_record, start, end, first_row, out_rows, out)
                first_record += ((band_end + 255) // 256 - band_row // 256) * load(record, uint64(K))
            elif start < end:
                group_rows(record, inputs, band_row, band_end, start, end, first_row, out_rows, out)

    return integer_gemv
