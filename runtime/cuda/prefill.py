"""Many rows: weights as plain numbers, a bounded piece at a time, and the vendor's GEMM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import BLOCK_ROWS, Layout
from .arguments import Parameters
from .device import get_device
from .formats import F16, FORMATS, ZERO_KIND_CODES
from .launch import current_stream, get_function

WORKSPACE_BYTES = 64 << 20
"""Plain numbers of a weight that exist at a time: 2048 rows of 16384 fp16 columns."""
_THREADS = 256


def dequantized_matmul(x: Tensor, layout: Layout, weight: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """x [rows, K] W^T + bias in x's dtype; the weight is rounded to that dtype, as a plain linear layer holds it."""
    if layout.permuted:
        x = x.index_select(1, weight[3])
    out = x.new_empty((x.shape[0], layout.n))
    piece = max(BLOCK_ROWS, WORKSPACE_BYTES // (layout.k * x.element_size()) // BLOCK_ROWS * BLOCK_ROWS)
    buffer = x.new_empty(min(piece, layout.padded_n) * layout.k)
    for start in range(0, layout.padded_n, piece):
        rows = min(piece, layout.padded_n - start)
        plain = buffer[: layout.k * rows].view(layout.k, rows)
        dequantize_rows(plain, layout, weight, start)
        columns = min(rows, layout.n - start)
        torch.mm(x, plain[:, :columns], out=out[:, start : start + columns])
    return out if bias is None else out.add_(bias)


def dequantize_rows(out: Tensor, layout: Layout, weight: Sequence[Tensor], start: int) -> None:
    """Write rows start .. start + out.shape[1] of a weight, transposed, into out [K, rows].

    Args:
        out: contiguous; float32, bfloat16 or float16.
        start: first row, a multiple of 128, as is the number of rows.
    """
    device = get_device(out.device.index)
    axis_in = layout.scale_axis == "in"
    macros = {
        "BITS": layout.bits,
        "SCALE_AXIS_OUT": int(not axis_in),
        "GROUP": layout.group_size,
        "SCALE_FORMAT": FORMATS[weight[1].dtype] if axis_in else F16,
        "ZERO_FORMAT": FORMATS[weight[2].dtype] if axis_in else F16,
        "ZERO_KIND": ZERO_KIND_CODES[layout.zero_kind],
        "OUT_FORMAT": FORMATS[out.dtype],
    }
    function = get_function(device, "dequantize.cu", "zigzag_dequantize", macros, _THREADS)
    columns_per_block = _THREADS // layout.words_per_block
    rows = out.shape[1]
    parameters = Parameters(
        (weight[0].data_ptr(), weight[1].data_ptr(), weight[2].data_ptr() if axis_in else 0, out.data_ptr()),
        (layout.padded_n, layout.k, layout.band, start, rows),
    )
    stream = current_stream(device.index)
    function.launch((-(-layout.k // columns_per_block), rows // BLOCK_ROWS), stream, parameters.address)
