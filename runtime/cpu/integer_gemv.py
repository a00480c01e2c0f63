"""Matrix times vector over the active columns in integers: the AVX-512 VNNI variant of gemv.py.

Columns are added in passes of 16; a pass goes down the rows block by block (dot_tile.py). The order of the sums depends
only on the list of active columns: not on the rows that a thread takes, not on the band, not on how many inputs (rows
of x) are multiplied together.
"""

from __future__ import annotations

import numpy as np
from numba import float32, uint64

from ..layout import BLOCK_ROWS
from .codes import FACTORS
from .column_scales import decode_factors
from .compile import jit
from .dot_tile import (
    add_chunks_2x1,
    add_chunks_2x3,
    add_chunks_4x1,
    add_chunks_4x3,
    add_chunks_8x1,
    add_chunks_8x3,
)
from .fixed_point import FLOAT32_DIGITS, quantize_factors_1, quantize_factors_3
from .inputs import (
    CHUNK_STRIDE,
    CHUNKS,
    COUNT,
    DIGITS,
    GROUP_PLACES,
    GROUP_VALUES,
    GROUPS,
    INDEX,
    PLACE_FIELDS,
    ROWS,
    STRIDE,
    VALUE_FIELDS,
    VALUES,
)
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
from .wide_scales import add_zero, subtract_zero, widen_block

PASS_COLUMNS = 16
"""Columns of a pass. 4096x11008, 50 % active, one thread: 1.06 ms; 8 columns 1.14."""
LAST_PASS_COLUMNS = 24
"""A pass takes this many when they are the last: a second pass of a few columns costs more than a longer one."""
AHEAD_ROWS = 4 * BLOCK_ROWS
"""How far ahead of the sums a column is prefetched, at its end into the column that the next pass reads in its place.
4096x11008, 50 % active: 256 rows 1.12 ms, 512 rows 1.06, 1024 rows 1.11; the next pass's block of the same rows, into
the second-level cache, 1.16; no prefetch 1.34."""


@jit
def integer_gemv(record: int, inputs: int, first_row: int, end_row: int, out: np.ndarray) -> None:
    """out[r, row - first_row] = sum of W[row, k] * x[r, k] over the active k, for rows first_row..end_row.

    Args:
        record: int64 pointer to the weight's record.
        inputs: int64 pointer to the inputs block.
        first_row, end_row: multiples of 128 within the padded N.
        out: float32 [rows of x * (end_row - first_row)].
    """
    padded_n = (load(record, uint64(N)) + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    band = load(record, uint64(BAND))
    first_record = 0
    for band_row in range(0, padded_n, band):
        band_end = min(band_row + band, padded_n)
        start, end = max(first_row, band_row), min(end_row, band_end)
        if load(record, uint64(ZERO_KIND)) == COLUMN_SCALES:
            if start < end:
                _column_rows(
                    record, inputs, band_row, band_end, first_record, start, end, first_row, end_row - first_row, out
                )
            first_record += ((band_end + 255) // 256 - band_row // 256) * load(record, uint64(K))
        elif start < end:
            _group_rows(record, inputs, band_row, band_end, start, end, first_row, end_row - first_row, out)


@jit
def _place_columns(
    record: int,
    inputs: int,
    band_row: int,
    band_end: int,
    start: int,
    count: int,
    offsets: np.ndarray,
    ahead: np.ndarray,
) -> int:
    """Fill the first words of the columns of a pass and of the ones to prefetch; return the chunks of the pass.

    The last chunk is filled up with a column that is there anyway; its inputs are zero.
    """
    depth = uint64(4 * load(record, uint64(BITS)))
    column_words = uint64((band_end - band_row) // BLOCK_ROWS) * depth
    band_word = uint64(band_row // BLOCK_ROWS) * depth * uint64(load(record, uint64(K)))
    index = uint64_pointer(load(inputs, uint64(INDEX)))
    last = load(inputs, uint64(COUNT)) - 1
    chunks = (count + 3) // 4
    for c in range(chunks * 4):
        offsets[c] = band_word + load(index, uint64(start + min(c, count - 1))) * column_words
        ahead[c] = band_word + load(index, uint64(min(start + count + c, last))) * column_words
    length: int = chunks
    return length


@jit
def _add_chunks(
    bits: int,
    digits: int,
    codes: int,
    word: int,
    offsets: int,
    ahead: int,
    ahead_word: int,
    chunks: int,
    integers: int,
    chunk_words: int,
    digit_words: int,
    units: int,
    first: int,
    sums: int,
) -> None:
    """The intrinsic of dot_tile.py for a width of codes and a number of digits."""
    if digits == FLOAT32_DIGITS:
        if bits == 4:
            add_chunks_4x3(
                codes, word, offsets, ahead, ahead_word, chunks, integers, chunk_words, digit_words, units, first, sums
            )
        elif bits == 8:
            add_chunks_8x3(
                codes, word, offsets, ahead, ahead_word, chunks, integers, chunk_words, digit_words, units, first, sums
            )
        else:
            add_chunks_2x3(
                codes, word, offsets, ahead, ahead_word, chunks, integers, chunk_words, digit_words, units, first, sums
            )
    elif bits == 4:
        add_chunks_4x1(
            codes, word, offsets, ahead, ahead_word, chunks, integers, chunk_words, digit_words, units, first, sums
        )
    elif bits == 8:
        add_chunks_8x1(
            codes, word, offsets, ahead, ahead_word, chunks, integers, chunk_words, digit_words, units, first, sums
        )
    else:
        add_chunks_2x1(
            codes, word, offsets, ahead, ahead_word, chunks, integers, chunk_words, digit_words, units, first, sums
        )


@jit
def _group_rows(
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
            chunks = _place_columns(record, inputs, band_row, band_end, start, count, offsets, ahead)
            start += count
            for block in range(0, rows, BLOCK_ROWS):
                word = uint64((start_row - band_row + block) // BLOCK_ROWS * depth)
                here = block + AHEAD_ROWS < rows
                ahead_word = word + uint64(AHEAD_ROWS // BLOCK_ROWS * depth)
                if not here:
                    ahead_word -= uint64(rows // BLOCK_ROWS * depth)
                for r in range(num_rows):
                    _add_chunks(
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


@jit
def _column_rows(
    record: int,
    inputs: int,
    band_row: int,
    band_end: int,
    first_record: int,
    start_row: int,
    end_row: int,
    out_row: int,
    out_rows: int,
    out: np.ndarray,
) -> None:
    """Rows of one band of a weight with scales along the outputs: scales ride on the inputs, minimums apart."""
    codes = uint32_pointer(load(record, uint64(CODES)))
    bits, digits = load(record, uint64(BITS)), load(inputs, uint64(DIGITS))
    depth = 4 * bits
    num_rows, num_active = load(inputs, uint64(ROWS)), load(inputs, uint64(COUNT))
    stride = load(inputs, uint64(STRIDE))
    records = (band_end + 255) // 256 - band_row // 256
    first_super, end_super = start_row // 256, (end_row + 255) // 256
    supers = end_super - first_super
    rows = end_row - start_row

    sums = np.zeros(num_rows * rows, np.float32)
    minimums = np.zeros(num_rows * supers * FACTORS, np.float32)
    factors = np.zeros((LAST_PASS_COLUMNS + 3) * FACTORS, np.float32)
    integers = np.empty(LAST_PASS_COLUMNS * digits * FACTORS // 4, np.uint32)
    units = np.empty(FACTORS, np.float32)
    offsets, ahead = np.empty(LAST_PASS_COLUMNS, np.uint64), np.empty(LAST_PASS_COLUMNS, np.uint64)
    offsets_at, ahead_at = uint64_pointer(address_of(offsets)), uint64_pointer(address_of(ahead))
    sums_at, units_at = float32_pointer(address_of(sums)), float32_pointer(address_of(units))
    integers_at, factors_at = uint32_pointer(address_of(integers)), float32_pointer(address_of(factors))
    start = 0
    while start < num_active:
        count = num_active - start
        if count > LAST_PASS_COLUMNS:
            count = PASS_COLUMNS
        chunks = _place_columns(record, inputs, band_row, band_end, start, count, offsets, ahead)
        factors[count * FACTORS : chunks * 4 * FACTORS] = float32(0)
        for superblock in range(first_super, end_super):
            first_block = max(superblock * 256, start_row)
            end_block = min(superblock * 256 + 256, end_row)
            for r in range(num_rows):
                decode_factors(
                    load(record, uint64(SCALE)),
                    first_record,
                    records,
                    superblock - band_row // 256,
                    load(inputs, uint64(INDEX)),
                    load(inputs, uint64(VALUES)) + 4 * r * stride,
                    start,
                    count,
                    num_active,
                    factors,
                    minimums,
                    (r * supers + superblock - first_super) * FACTORS,
                )
                if digits == FLOAT32_DIGITS:
                    quantize_factors_3(factors_at, uint64(chunks), integers_at, units_at)
                else:
                    quantize_factors_1(factors_at, uint64(chunks), integers_at, units_at)
                for block in range(first_block, end_block, BLOCK_ROWS):
                    half = uint64(block % 256 // 32)
                    word = uint64((block - band_row) // BLOCK_ROWS * depth)
                    here = block + AHEAD_ROWS < end_row
                    ahead_word = word + uint64(AHEAD_ROWS // BLOCK_ROWS * depth)
                    if not here:
                        ahead_word -= uint64(rows // BLOCK_ROWS * depth)
                    _add_chunks(
                        bits,
                        digits,
                        codes,
                        word,
                        offsets_at,
                        offsets_at if here else ahead_at,
                        ahead_word,
                        uint64(chunks),
                        offset_uint32(integers_at, half),
                        uint64(digits * FACTORS),
                        uint64(FACTORS),
                        offset_float32(units_at, half),
                        uint64(0),
                        offset_float32(sums_at, uint64(r * rows + block - start_row)),
                    )
        start += count
    for r in range(num_rows):
        for block in range(0, rows, BLOCK_ROWS):
            a, b = uint64(r * rows + block), uint64(r * out_rows + start_row - out_row + block)
            m = uint64((r * supers - first_super) * FACTORS + (start_row + block) // 32)
            for i in range(uint64(BLOCK_ROWS)):
                out[b + i] = sums[a + i] - minimums[m + i // uint64(32)]
    keep(sums)
    keep(factors)
    keep(integers)
    keep(units)
    keep(offsets)
    keep(ahead)
