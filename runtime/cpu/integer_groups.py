"""Integer kernels for weights whose scales run along the inputs: sums per group, then scale and zero."""

from __future__ import annotations

import numpy as np
from numba import float32, uint64

from ..layout import BLOCK_ROWS
from .compile import jit
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
from .integer_pass import AHEAD_ROWS, LAST_PASS_COLUMNS, PASS_COLUMNS, add_chunks, place_columns
from .memory import (
    address_of,
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
from .wide_scales import add_zero, subtract_zero, widen_block


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

    sums = np.empty(num_rows * rows, np.float32)
    scale, zero = np.empty(BLOCK_ROWS, np.float32), np.empty(BLOCK_ROWS, np.float32)
    offsets, ahead = np.empty(LAST_PASS_COLUMNS, np.uint64), np.empty(LAST_PASS_COLUMNS, np.uint64)
    offsets_at, ahead_at = uint64_pointer(address_of(offsets)), uint64_pointer(address_of(ahead))
    sums_at, outs = float32_pointer(address_of(sums)), float32_pointer(address_of(out))
    scale_at, zero_at = float32_pointer(address_of(scale)), float32_pointer(address_of(zero))
    for g in range(groups):
        at = uint64(g * PLACE_FIELDS)
        group, start = load(places, at), load(places, at + uint64(1))
        end, chunk = load(places, at + uint64(2)), load(places, at + uint64(3))
        first_scale = band_row * num_groups + group * (band_end - band_row) + start_row - band_row
        first = uint64(1)
        while start < end:
            count = end - start
            if count > LAST_PASS_COLUMNS:
                count = PASS_COLUMNS
            chunks = place_columns(record, inputs, band_row, band_end, start, count, offsets, ahead)
            start += count
            for block in range(0, rows, BLOCK_ROWS):
                word = uint64((start_row - band_row + block) // BLOCK_ROWS * depth)
                here = block + AHEAD_ROWS < rows
                ahead_word = word + uint64(AHEAD_ROWS // BLOCK_ROWS * depth)
                if not here:
                    ahead_word -= uint64(rows // BLOCK_ROWS * depth)
                for r in range(num_rows):
                    add_chunks(
                        bits,
                        digits,
                        codes,
                        word,
                        offsets_at,
                        offsets_at if here else ahead_at,
                        ahead_word,
                        uint64(chunks),
                        offset_uint32(integers, uint64(r * chunk_stride + chunk * chunk_words)),
                        uint64(chunk_words),
                        uint64(4),
                        offset_float32(values, uint64((r * groups + g) * VALUE_FIELDS)),
                        first,
                        offset_float32(sums_at, uint64(r * rows + block)),
                    )
                if start >= end:
                    scale_start = uint64(first_scale + block)
                    widen_block(load(record, uint64(SCALE)), scale_start, load(record, uint64(SCALE_DTYPE)), scale_at)
                    widen_block(load(record, uint64(ZERO)), scale_start, load(record, uint64(ZERO_DTYPE)), zero_at)
                    for r in range(num_rows):
                        total = load(values, uint64((r * groups + g) * VALUE_FIELDS + 4))
                        sum_at = offset_float32(sums_at, uint64(r * rows + block))
                        out_at = offset_float32(outs, uint64(r * out_rows + start_row - out_row + block))
                        if load(record, uint64(ZERO_KIND)) == ADD_ZERO:
                            add_zero(scale_at, zero_at, total, sum_at, out_at)
                        else:
                            subtract_zero(scale_at, zero_at, total, sum_at, out_at)
            chunk += chunks
            first = uint64(0)
    keep(out)
    keep(sums)
    keep(scale)
    keep(zero)
    keep(offsets)
    keep(ahead)
