"""Integer kernels for weights with scales along the outputs: scales ride on the inputs, minimums are summed apart."""

from __future__ import annotations

import numpy as np
from numba import float32, uint64

from ..layout import BLOCK_ROWS
from .codes import FACTORS
from .compile import jit
from .dot_tile import WALK_FIELDS, to_row_order
from .fixed_point import FLOAT32_DIGITS, quantize_factors_1, quantize_factors_3
from .inputs import (
    COUNT,
    DIGITS,
    INDEX,
    ROWS,
    STRIDE,
    VALUES,
)
from .integer_pass import MOST_COLUMNS, add_pass, pass_columns, place_columns
from .memory import (
    SPARE,
    address_of,
    aligned,
    float32_pointer,
    keep,
    load,
    offset_float32,
    offset_uint32,
    uint32_pointer,
    uint64_pointer,
)
from .record import (
    BITS,
    CODES,
    SCALE,
)
from .wide_columns import decode_factors_wide


@jit
def column_rows(
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

    sums = np.zeros(num_rows * rows + SPARE, np.float32)
    minimums = np.zeros(num_rows * supers * FACTORS, np.float32)
    factors = np.zeros((MOST_COLUMNS + 3) * FACTORS, np.float32)
    integers = np.empty(MOST_COLUMNS * digits * FACTORS // 4, np.uint32)
    units = np.empty(FACTORS, np.float32)
    first_word = (start_row - band_row) // BLOCK_ROWS * depth
    offsets, ahead = np.empty(MOST_COLUMNS, np.uint64), np.empty(MOST_COLUMNS, np.uint64)
    walk = np.empty(WALK_FIELDS, np.uint64)
    walk_at = uint64_pointer(address_of(walk))
    offsets_at, ahead_at = uint64_pointer(address_of(offsets)), uint64_pointer(address_of(ahead))
    sums_at, units_at = float32_pointer(aligned(address_of(sums))), float32_pointer(address_of(units))
    integers_at, factors_at = uint32_pointer(address_of(integers)), float32_pointer(address_of(factors))
    start = 0
    while start < num_active:
        count = pass_columns(num_active - start)
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
        factors[count * FACTORS : chunks * 4 * FACTORS] = float32(0)
        for superblock in range(first_super, end_super):
            first_block = max(superblock * 256, start_row)
            end_block = min(superblock * 256 + 256, end_row)
            for r in range(num_rows):
                decode_factors_wide(
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
                half = uint64(first_block % 256 // 32)
                add_pass(
                    bits,
                    digits,
                    codes,
                    uint64((first_block - band_row) // BLOCK_ROWS * depth),
                    offsets_at,
                    ahead_at,
                    walk_at,
                    uint64((end_block - first_block) // BLOCK_ROWS),
                    uint64(chunks),
                    offset_uint32(integers_at, half),
                    uint64(digits * FACTORS),
                    uint64(FACTORS),
                    offset_float32(units_at, half),
                    uint64(4),
                    uint64(0),
                    offset_float32(sums_at, uint64(r * rows + first_block - start_row)),
                    uint64(1),
                    uint64(0),
                    uint64(0),
                    uint64(0),
                )
        start += count
    for r in range(num_rows):
        for block in range(0, rows, BLOCK_ROWS):
            a, b = uint64(r * rows + block), uint64(r * out_rows + start_row - out_row + block)
            m = uint64((r * supers - first_super) * FACTORS + (start_row + block) // 32)
            to_row_order(bits, offset_float32(sums_at, a))
            for i in range(uint64(BLOCK_ROWS)):
                out[b + i] = load(sums_at, a + i) - minimums[m + i // uint64(32)]
    keep(sums)
    keep(factors)
    keep(integers)
    keep(units)
    keep(offsets)
    keep(ahead)
    keep(walk)
