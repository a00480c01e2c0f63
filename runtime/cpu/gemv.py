"""Matrix times vector over the active columns, for one weight: the sums, before bias and rounding.

Columns are added in passes: a pass reads up to a few dozen columns side by side, block by block, while the columns of
the next pass are prefetched. The order of the additions depends only on the list of active entries, so a result has
the same bits every run, and the dense result is the sparse one with every entry listed.
"""

from __future__ import annotations

import numpy as np
from numba import float32, uint64

from ..layout import BLOCK_ROWS
from .codes import COLUMNS_AT_ONCE, FACTORS, add_columns, field_units
from .column_scales import decode_factors
from .compile import jit
from .floats import widen
from .inputs import COUNT, INDEX, ROWS, STRIDE, VALUES
from .memory import float32_pointer, load, prefetch, uint32_pointer, uint64_pointer
from .record import (
    ADD_ZERO,
    BAND,
    BITS,
    CODES,
    COLUMN_SCALES,
    GROUP_SIZE,
    SCALE,
    SCALE_DTYPE,
    ZERO,
    ZERO_DTYPE,
    ZERO_KIND,
    K,
    N,
)

PASS_COLUMNS = 16
"""Columns of a pass. 4096x11008, 50 % active, one thread of an AVX-512 machine: 8, 12 and 16 are within 3 %, 24 takes
15 % longer and 32 takes 25 %."""
LAST_PASS_COLUMNS = 24
"""A pass takes this many when they are the last: a second pass of a few columns costs more than a longer one."""


@jit
def gemv(record: int, inputs: int, first_row: int, end_row: int, out: np.ndarray) -> None:
    """out[r, row - first_row] = sum of W[row, k] * x[r, k] over the active k, for rows first_row..end_row.

    Args:
        record: int64 pointer to the weight's record.
        inputs: int64 pointer to the inputs block.
        first_row, end_row: multiples of 128 within the padded N.
        out: float32 [rows of x * (end_row - first_row)].
    """
    padded_n = (load(record, uint64(N)) + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    band = load(record, uint64(BAND))
    index, num_active = load(inputs, uint64(INDEX)), load(inputs, uint64(COUNT))
    for r in range(load(inputs, uint64(ROWS))):
        values = load(inputs, uint64(VALUES)) + 4 * r * load(inputs, uint64(STRIDE))
        first_record = 0
        for band_row in range(0, padded_n, band):
            band_end = min(band_row + band, padded_n)
            start, end = max(first_row, band_row), min(end_row, band_end)
            first_out = r * (end_row - first_row) + start - first_row
            if load(record, uint64(ZERO_KIND)) == COLUMN_SCALES:
                if start < end:
                    _column_band(
                        record, band_row, band_end, first_record, start, end, index, values, num_active, first_out, out
                    )
                first_record += ((band_end + 255) // 256 - band_row // 256) * load(record, uint64(K))
            elif start < end:
                _group_band(record, band_row, band_end, start, end, index, values, num_active, first_out, out)


@jit
def _group_band(
    record: int,
    band_row: int,
    band_end: int,
    start_row: int,
    end_row: int,
    active_index: int,
    active_value: int,
    num_active: int,
    first_out: int,
    out: np.ndarray,
) -> None:
    """Rows of one band of a weight whose scales run along the inputs: sums per group, then scale and zero."""
    index, values = uint64_pointer(active_index), float32_pointer(active_value)
    group_size = load(record, uint64(GROUP_SIZE))
    num_groups = (load(record, uint64(K)) + group_size - 1) // group_size
    rows = end_row - start_row
    units = field_units(load(record, uint64(BITS)))
    sums = np.empty(rows, np.float32)
    out[first_out : first_out + rows] = float32(0)
    start = 0
    while start < num_active:
        group = np.int64(load(index, uint64(start))) // group_size
        limit = uint64((group + 1) * group_size)
        end = start
        total = float32(0)
        while end < num_active and load(index, uint64(end)) < limit:
            total += load(values, uint64(end))
            end += 1
        sums[:] = float32(0)
        _add_passes(
            record,
            band_row,
            band_end,
            start_row,
            rows,
            0,
            active_index,
            active_value,
            start,
            end,
            num_active,
            sums,
            sums,
        )
        first_scale = band_row * num_groups + group * (band_end - band_row) + start_row - band_row
        _apply_group(record, first_scale, rows, units, sums, total, first_out, out)
        start = end


@jit
def _apply_group(
    record: int,
    first_scale: int,
    rows: int,
    units: np.ndarray,
    sums: np.ndarray,
    total: float,
    first_out: int,
    out: np.ndarray,
) -> None:
    """out += scale * (sums - zero * total), or scale * sums + zero * total."""
    scale = np.empty(BLOCK_ROWS, np.float32)
    zero = np.empty(BLOCK_ROWS, np.float32)
    add_zero = load(record, uint64(ZERO_KIND)) == ADD_ZERO
    for block in range(0, rows, BLOCK_ROWS):
        first = first_scale + block
        widen(load(record, uint64(SCALE)), first, BLOCK_ROWS, load(record, uint64(SCALE_DTYPE)), scale)
        widen(load(record, uint64(ZERO)), first, BLOCK_ROWS, load(record, uint64(ZERO_DTYPE)), zero)
        a, b = uint64(block), uint64(first_out + block)
        if add_zero:
            for i in range(uint64(BLOCK_ROWS)):
                out[b + i] += scale[i] * (sums[a + i] * units[i]) + zero[i] * total
        else:
            for i in range(uint64(BLOCK_ROWS)):
                out[b + i] += scale[i] * (sums[a + i] * units[i] - zero[i] * total)


@jit
def _column_band(
    record: int,
    band_row: int,
    band_end: int,
    first_record: int,
    start_row: int,
    end_row: int,
    active_index: int,
    active_value: int,
    num_active: int,
    first_out: int,
    out: np.ndarray,
) -> None:
    """Rows of one band of a weight with scales along the outputs: scales ride on the factors, minimums apart."""
    rows = end_row - start_row
    units = field_units(load(record, uint64(BITS)))
    sums = np.zeros(rows, np.float32)
    minimums = np.zeros(((end_row + 255) // 256 - start_row // 256) * FACTORS, np.float32)
    _add_passes(
        record,
        band_row,
        band_end,
        start_row,
        rows,
        first_record,
        active_index,
        active_value,
        0,
        num_active,
        num_active,
        sums,
        minimums,
    )
    skipped = start_row % 256 // 32
    for block in range(0, rows, BLOCK_ROWS):
        a, b = uint64(block), uint64(first_out + block)
        for i in range(uint64(BLOCK_ROWS)):
            out[b + i] = sums[a + i] * units[i] - minimums[uint64(skipped) + (a + i) // uint64(32)]


@jit
def _add_passes(
    record: int,
    band_row: int,
    band_end: int,
    start_row: int,
    rows: int,
    first_record: int,
    active_index: int,
    active_value: int,
    start: int,
    end: int,
    num_active: int,
    sums: np.ndarray,
    minimums: np.ndarray,
) -> None:
    """sums[0:rows] += codes * factors over the active entries start..end, for rows of one band."""
    index, values = uint64_pointer(active_index), float32_pointer(active_value)
    codes = uint32_pointer(load(record, uint64(CODES)))
    bits = load(record, uint64(BITS))
    depth = uint64(4 * bits)
    column_scales = load(record, uint64(ZERO_KIND)) == COLUMN_SCALES
    column_words = uint64((band_end - band_row) // BLOCK_ROWS) * depth
    band_word = uint64(band_row // BLOCK_ROWS) * depth * uint64(load(record, uint64(K)))
    records = (band_end + 255) // 256 - band_row // 256
    offsets = np.empty(LAST_PASS_COLUMNS + COLUMNS_AT_ONCE, np.uint64)
    ahead = np.empty(LAST_PASS_COLUMNS + COLUMNS_AT_ONCE, np.uint64)
    factors = np.zeros((LAST_PASS_COLUMNS + COLUMNS_AT_ONCE) * FACTORS, np.float32)
    while start < end:
        count = end - start
        if count > LAST_PASS_COLUMNS:
            count = PASS_COLUMNS
        padded = (count + COLUMNS_AT_ONCE - 1) // COLUMNS_AT_ONCE * COLUMNS_AT_ONCE
        for c in range(padded):
            entry = start + min(c, count - 1)
            offsets[c] = band_word + load(index, uint64(entry)) * column_words
            ahead[c] = band_word + load(index, uint64(min(start + count + c, num_active - 1))) * column_words
            value = load(values, uint64(entry)) if c < count else float32(0)
            for i in range(FACTORS):
                factors[c * FACTORS + i] = value
        superblock = -1
        for row in range(start_row, start_row + rows, BLOCK_ROWS):
            word = uint64((row - band_row) // BLOCK_ROWS) * depth
            first_factor = 0
            for c in range(count):
                prefetch(codes, ahead[c] + word)
                if bits == 8:
                    prefetch(codes, ahead[c] + word + uint64(16))
            if column_scales:
                first_factor = row % 256 // 32
                if row // 256 != superblock:
                    superblock = row // 256
                    decode_factors(
                        load(record, uint64(SCALE)),
                        first_record,
                        records,
                        superblock - band_row // 256,
                        active_index,
                        active_value,
                        start,
                        count,
                        num_active,
                        factors,
                        minimums,
                        (superblock - start_row // 256) * FACTORS,
                    )
            add_columns(bits, codes, offsets, word, factors, first_factor, padded, sums, uint64(row - start_row))
        start += count
