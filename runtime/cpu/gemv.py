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
from .memory import load, prefetch, uint32_pointer
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
def gemv(record: int, active_index: np.ndarray, active_value: np.ndarray, num_active: int, out: np.ndarray) -> None:
    """out[row] = sum of W[row, k] * x_k over the active k.

    Args:
        record: int64 pointer to the weight's record.
        active_index: uint64 ascending; active_value: float32, x at those entries.
        out: float32 [padded N]; rows past N get values that mean nothing.
    """
    padded_n = (load(record, uint64(N)) + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    band = load(record, uint64(BAND))
    first_record = 0
    for first_row in range(0, padded_n, band):
        end_row = min(first_row + band, padded_n)
        if load(record, uint64(ZERO_KIND)) == COLUMN_SCALES:
            records = (end_row + 255) // 256 - first_row // 256
            _column_band(record, first_row, end_row, first_record, active_index, active_value, num_active, out)
            first_record += records * load(record, uint64(K))
        else:
            _group_band(record, first_row, end_row, active_index, active_value, num_active, out)


@jit
def _group_band(
    record: int,
    first_row: int,
    end_row: int,
    active_index: np.ndarray,
    active_value: np.ndarray,
    num_active: int,
    out: np.ndarray,
) -> None:
    """One band of a weight whose scales run along the inputs: sums per group, then scale and zero once per group."""
    k = load(record, uint64(K))
    group_size = load(record, uint64(GROUP_SIZE))
    num_groups = (k + group_size - 1) // group_size
    rows = end_row - first_row
    units = field_units(load(record, uint64(BITS)))
    sums = np.empty(rows, np.float32)
    out[first_row:end_row] = float32(0)
    start = 0
    while start < num_active:
        group = np.int64(active_index[start]) // group_size
        limit = uint64((group + 1) * group_size)
        end = start
        total = float32(0)
        while end < num_active and active_index[end] < limit:
            total += active_value[end]
            end += 1
        sums[:] = float32(0)
        _add_passes(record, first_row, rows, 0, active_index, active_value, start, end, num_active, sums, sums)
        _apply_group(record, first_row * num_groups + group * rows, rows, units, sums, total, first_row, out)
        start = end


@jit
def _apply_group(
    record: int,
    first_scale: int,
    rows: int,
    units: np.ndarray,
    sums: np.ndarray,
    total: float,
    first_row: int,
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
        a, b = uint64(block), uint64(first_row + block)
        if add_zero:
            for i in range(uint64(BLOCK_ROWS)):
                out[b + i] += scale[i] * (sums[a + i] * units[i]) + zero[i] * total
        else:
            for i in range(uint64(BLOCK_ROWS)):
                out[b + i] += scale[i] * (sums[a + i] * units[i] - zero[i] * total)


@jit
def _column_band(
    record: int,
    first_row: int,
    end_row: int,
    first_record: int,
    active_index: np.ndarray,
    active_value: np.ndarray,
    num_active: int,
    out: np.ndarray,
) -> None:
    """One band of a weight with scales along the outputs: scales ride on the factors, minimums are summed apart."""
    rows = end_row - first_row
    units = field_units(load(record, uint64(BITS)))
    sums = np.zeros(rows, np.float32)
    minimums = np.zeros(((end_row + 255) // 256 - first_row // 256) * FACTORS, np.float32)
    _add_passes(
        record, first_row, rows, first_record, active_index, active_value, 0, num_active, num_active, sums, minimums
    )
    skipped = first_row % 256 // 32
    for block in range(0, rows, BLOCK_ROWS):
        a, b = uint64(block), uint64(first_row + block)
        for i in range(uint64(BLOCK_ROWS)):
            out[b + i] = sums[a + i] * units[i] - minimums[uint64(skipped) + (a + i) // uint64(32)]


@jit
def _add_passes(
    record: int,
    first_row: int,
    rows: int,
    first_record: int,
    active_index: np.ndarray,
    active_value: np.ndarray,
    start: int,
    end: int,
    num_active: int,
    sums: np.ndarray,
    minimums: np.ndarray,
) -> None:
    """sums[0:rows] += codes * factors over the active entries start..end of one band."""
    codes = uint32_pointer(load(record, uint64(CODES)))
    bits = load(record, uint64(BITS))
    depth = uint64(4 * bits)
    column_scales = load(record, uint64(ZERO_KIND)) == COLUMN_SCALES
    blocks = rows // BLOCK_ROWS
    column_words = uint64(blocks) * depth
    band_word = uint64(first_row // BLOCK_ROWS) * depth * uint64(load(record, uint64(K)))
    first_block = first_row // BLOCK_ROWS
    records = (first_block + blocks + 1) // 2 - first_block // 2
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
            offsets[c] = band_word + active_index[entry] * column_words
            ahead[c] = band_word + active_index[min(start + count + c, num_active - 1)] * column_words
            value = active_value[entry] if c < count else float32(0)
            for i in range(FACTORS):
                factors[c * FACTORS + i] = value
        superblock = -1
        for block in range(blocks):
            word = uint64(block) * depth
            first_factor = 0
            for c in range(count):
                prefetch(codes, ahead[c] + word)
                if bits == 8:
                    prefetch(codes, ahead[c] + word + uint64(16))
            if column_scales:
                first_factor = (first_block + block) % 2 * 4
                here = (first_block + block) // 2 - first_block // 2
                if here != superblock:
                    superblock = here
                    decode_factors(
                        load(record, uint64(SCALE)),
                        first_record,
                        records,
                        superblock,
                        active_index,
                        active_value,
                        start,
                        count,
                        num_active,
                        factors,
                        minimums,
                    )
            add_columns(bits, codes, offsets, word, factors, first_factor, padded, sums, uint64(block * BLOCK_ROWS))
        start += count
