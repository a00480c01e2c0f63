"""The kernel that turns packed columns back into float32 weights, for inputs of several rows."""

from __future__ import annotations

import numpy as np
from numba import float32, int32, uint32, uint64

from ..layout import BLOCK_ROWS
from .codes import FACTORS
from .column_scales import decode_factors
from .compile import jit, kernel
from .floats import widen
from .memory import address_of, float32_pointer, int64_pointer, keep, load, store, uint32_pointer
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


@kernel
def dequantize(record_address: int, first_row: int, end_row: int, out: int, stride: int) -> None:
    """Write rows first_row..end_row of a weight, transposed: float32, column k at address out + 4 * k * stride.

    Both borders are multiples of 128.
    """
    record = int64_pointer(record_address)
    target = float32_pointer(out)
    for row in range(first_row, end_row, BLOCK_ROWS):
        _write_block(record, row, 0, load(record, uint64(K)), target, row - first_row, stride)


@jit
def dequantize_column(record: int, row: int, column: int, weights: np.ndarray) -> None:
    """weights[0:128] = W[row : row + 128, column]."""
    _write_block(record, row, column, column + 1, float32_pointer(address_of(weights)), 0, 0)
    keep(weights)


@jit
def _write_block(
    record: int, row: int, first_column: int, end_column: int, out: int, out_row: int, stride: int
) -> None:
    """out[(k - first_column) * stride + out_row + i] = W[row + i, k] for the 128 rows of a block."""
    k = load(record, uint64(K))
    depth = 4 * load(record, uint64(BITS))
    band = load(record, uint64(BAND))
    padded_n = (load(record, uint64(N)) + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    band_row = row // band * band
    band_rows = min(band, padded_n - band_row)
    column_words = band_rows // BLOCK_ROWS * depth
    first_word = band_row // BLOCK_ROWS * depth * k + (row - band_row) // BLOCK_ROWS * depth
    first_word += first_column * column_words
    if load(record, uint64(ZERO_KIND)) == COLUMN_SCALES:
        _column_block(
            record, row, band_row, band_rows, first_word, column_words, first_column, end_column, out, out_row, stride
        )
    else:
        _group_block(
            record, row, band_row, band_rows, first_word, column_words, first_column, end_column, out, out_row, stride
        )


@jit
def _group_block(
    record: int,
    row: int,
    band_row: int,
    band_rows: int,
    word: int,
    column_words: int,
    first_column: int,
    end_column: int,
    out: int,
    out_row: int,
    stride: int,
) -> None:
    """128 rows of some columns, scales along the inputs."""
    scale, zero = np.empty(BLOCK_ROWS, np.float32), np.empty(BLOCK_ROWS, np.float32)
    codes = np.empty(BLOCK_ROWS, np.float32)
    group_size = load(record, uint64(GROUP_SIZE))
    num_groups = (load(record, uint64(K)) + group_size - 1) // group_size
    add_zero = load(record, uint64(ZERO_KIND)) == ADD_ZERO
    group = -1
    for column in range(first_column, end_column):
        if column // group_size != group:
            group = column // group_size
            first = band_row * num_groups + group * band_rows + row - band_row
            widen(load(record, uint64(SCALE)), first, BLOCK_ROWS, load(record, uint64(SCALE_DTYPE)), scale)
            widen(load(record, uint64(ZERO)), first, BLOCK_ROWS, load(record, uint64(ZERO_DTYPE)), zero)
        _decode_block(load(record, uint64(CODES)), load(record, uint64(BITS)), word, codes)
        at = uint64((column - first_column) * stride + out_row)
        if add_zero:
            for i in range(uint64(BLOCK_ROWS)):
                store(out, at + i, scale[i] * codes[i] + zero[i])
        else:
            for i in range(uint64(BLOCK_ROWS)):
                store(out, at + i, scale[i] * (codes[i] - zero[i]))
        word += column_words


@jit
def _column_block(
    record: int,
    row: int,
    band_row: int,
    band_rows: int,
    word: int,
    column_words: int,
    first_column: int,
    end_column: int,
    out: int,
    out_row: int,
    stride: int,
) -> None:
    """128 rows of some columns, scales along the outputs."""
    band = load(record, uint64(BAND))
    first_record = np.int64(0)
    for start in range(0, band_row, band):
        first_record += ((start + band + 255) // 256 - start // 256) * load(record, uint64(K))
    records = (band_row + band_rows + 255) // 256 - band_row // 256
    quarter = row % 256 // 32
    factors, minimums = np.empty(FACTORS, np.float32), np.empty(FACTORS, np.float32)
    codes = np.empty(BLOCK_ROWS, np.float32)
    index, one = np.empty(1, np.uint64), np.ones(1, np.float32)
    for column in range(first_column, end_column):
        index[0] = uint64(column)
        minimums[:] = float32(0)
        decode_factors(
            load(record, uint64(SCALE)),
            first_record,
            records,
            row // 256 - band_row // 256,
            address_of(index),
            address_of(one),
            0,
            1,
            1,
            factors,
            minimums,
            0,
        )
        _decode_block(load(record, uint64(CODES)), load(record, uint64(BITS)), word, codes)
        at = uint64((column - first_column) * stride + out_row)
        for part in range(4):
            scale, minimum = factors[quarter + part], minimums[quarter + part]
            for i in range(uint64(part * 32), uint64(part * 32 + 32)):
                store(out, at + i, scale * codes[i] - minimum)
        word += column_words
    keep(index)
    keep(one)


@jit
def _decode_block(address: int, bits: int, word: int, codes: np.ndarray) -> None:
    """codes[0:128] = one block of one column, as float32."""
    if bits == 4:
        for field in range(8):
            _decode_field(address, word, 4 * field, 15, 16, codes, field * 16)
    elif bits == 8:
        for field in range(4):
            _decode_field(address, word, 8 * field, 255, 32, codes, field * 32)
    else:
        for field in range(16):
            _decode_field(address, word, 2 * field, 3, 8, codes, field * 8)


@jit
def _decode_field(address: int, word: int, shift: int, mask: int, depth: int, codes: np.ndarray, row: int) -> None:
    words = uint32_pointer(address)
    first, top = uint64(word), uint64(row)
    for i in range(uint64(depth)):
        codes[top + i] = float32(int32((uint32(load(words, first + i)) >> uint32(shift)) & uint32(mask)))
