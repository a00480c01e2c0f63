"""Matrix times vector for inputs that are not finite, or extremely large or small.

The fast kernels take a group's zero out of the sum, W x = scale * (codes . x - zero * sum(x)), which is not the same
when x holds an infinity; and the integer kernels need a largest input. Here every weight is formed first, as the
reference does, then multiplied and added in float32. It is slow, and such inputs are rare.
"""

from __future__ import annotations

import numpy as np
from numba import float32, uint64

from ..layout import BLOCK_ROWS
from .compile import jit
from .dequantize import dequantize_column
from .inputs import COUNT, INDEX, ROWS, STRIDE, VALUES
from .memory import float32_pointer, load, uint64_pointer


@jit
def exact_gemv(record: int, inputs: int, first_row: int, end_row: int, out: np.ndarray) -> None:
    """As `gemv`, with every weight formed in float32 before it is multiplied."""
    index = uint64_pointer(load(inputs, uint64(INDEX)))
    values = float32_pointer(load(inputs, uint64(VALUES)))
    stride = load(inputs, uint64(STRIDE))
    weights = np.empty(BLOCK_ROWS, np.float32)
    rows = end_row - first_row
    out[:] = float32(0)
    for row in range(first_row, end_row, BLOCK_ROWS):
        for entry in range(load(inputs, uint64(COUNT))):
            column = np.int64(load(index, uint64(entry)))
            dequantize_column(record, row, column, weights)
            for r in range(load(inputs, uint64(ROWS))):
                x = load(values, uint64(r * stride + entry))
                at = uint64(r * rows + row - first_row)
                for i in range(uint64(BLOCK_ROWS)):
                    out[at + i] += weights[i] * x
