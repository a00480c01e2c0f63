"""Integer kernels for weights whose scales run along the inputs: sums per group, then scale and zero."""

from __future__ import annotations

import numpy as np
from numba import float32, uint64

from ..layout import BLOCK_ROWS
from .compile import jit
from .dot_tile import WALK_FIELDS
from .inputs import (
    CHUNK_STRIDE,
    CHUNKS,
    DIGITS,
    GROUP_PLACES,
    GROUP_VALUES,
    GROUPS,
    PLACE_FIELDS,
    ROWS,
    VALUE_FIELDS,
)
from .integer_pass import MOST_COLUMNS, add_pass, pass_columns, place_columns
from .memory import (
    SPARE,
    address_of,
    aligned,
    float32_pointer,
    int64_pointer,
    keep,
    load,
    offset_float32,
    offset_uint32,
    uint32_pointer,
    uint64_pointer,
)
from .record import (
    ADD_ZERO,
    BITS,
    CODES,
    GROUP_SIZE,
    SCALE,
    SCALE_DTYPE,
    ZERO,
    ZERO_DTYPE,
    ZERO_KIND,
    K,
)
from .wide_scales import apply_scales


@jit
def group_rows(
    record: int,
    inputs: int,
    band_row: int,
    band_end: int,
    start_row: int,
    end_row: int,
    out_row: int,
    out_rows: int,
    out: np.ndarray,
) -> None:
    """Rows of one band of a weight whose scales run along the inputs: sums per group, then scale and zero."""
    codes = uint32_pointer(load(record, uint64(CODES)))
    bits, digits = load(record, uint64(BITS)), load(inputs, uint64(DIGITS))
    depth = 4 * bits
    num_rows, groups = load(inputs, uint64(ROWS)), load(inputs, uint64(GROUPS))
    places = int64_pointer(load(inputs, uint64(GROUP_PLACES)))
    values = float32_pointer(load(inputs, uint64(GROUP_VALUES)))
    integers = uint32_pointer(load(inputs, uint64(CHUNKS)))
    chunk_stride = load(inputs, uint64(CHUNK_STRIDE))
    chunk_words = digits * 4
    group_size = load(record, uint64(GROUP_SIZE))
    num_groups = (load(record, uint64(K)) + group_size - 1) // group_size
    rows = end_row - start_row
    for r in range(num_rows):
        first_out = r * out_rows + start_row - out_row
        out[first_out : first_out + rows] = float32(0)

    sums = np.empty(num_rows * rows + SPARE, np.float32)
    first_word = (start_row - band_row) // BLOCK_ROWS * depth
    offsets, ahead = np.empty(MOST_COLUMNS, np.uint64), np.empty(MOST_COLUMNS, np.uint64)
    walk = np.empty(WALK_FIELDS, np.uint64)
    walk_at = uint64_pointer(address_of(walk))
    offsets_at, ahead_at = uint64_pointer(address_of(offsets)), uint64_pointer(address_of(ahead))
    sums_at, outs = float32_pointer(aligned(address_of(sums))), float32_pointer(address_of(out))
    blocks = uint64(rows // BLOCK_ROWS)
    for g in range(groups):
        at = uint64(g * PLACE_FIELDS)
        group, start = load(places, at), load(places, at + uint64(1))
        end, chunk = load(places, at + uint64(2)), load(places, at + uint64(3))
        first = uint64(1)
        first_scale = band_row * num_groups + group * (band_end - band_row) + start_row - band_row
        while start < end:
            count = pass_columns(end - start)
            chunks = place_columns(
                record,
                inputs,
                band_row,
                band_end,
                start,
                count,
                first_word,
                rows // BLOCK_ROWS * depth,
                offsets,
                ahead,
                walk,
            )
            add_pass(
                bits,
                digits,
                codes,
                uint64(first_word),
                offsets_at,
                ahead_at,
                walk_at,
                blocks,
                uint64(chunks),
                offset_uint32(integers, uint64(chunk * chunk_words)),
                uint64(chunk_words),
                uint64(4),
                offset_float32(values, uint64(g * VALUE_FIELDS)),
                uint64(0),
                first,
                sums_at,
                uint64(num_rows),
                uint64(chunk_stride),
                uint64(groups * VALUE_FIELDS),
                uint64(rows),
            )
            start += count
            chunk += chunks
            first = uint64(0)
        adds_zero = np.int64(load(record, uint64(ZERO_KIND)) == ADD_ZERO)
        for block in range(0, rows, BLOCK_ROWS):
            for r in range(num_rows):
                apply_scales(
                    bits,
                    offset_float32(sums_at, uint64(r * rows + block)),
                    load(record, uint64(SCALE)),
                    load(record, uint64(SCALE_DTYPE)),
                    load(record, uint64(ZERO)),
                    load(record, uint64(ZERO_DTYPE)),
                    first_scale + block,
                    adds_zero,
                    load(values, uint64((r * groups + g) * VALUE_FIELDS + 4)),
                    offset_float32(outs, uint64(r * out_rows + start_row - out_row + block)),
                )
    keep(out)
    keep(sums)
    keep(offsets)
    keep(ahead)
    keep(walk)
