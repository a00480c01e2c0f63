"""The kernel that turns packed columns back into float32 weights, for inputs of several rows."""

from __future__ import annotations

import numpy as np
from numba import float32, int32, uint32, uint64

from ..layout import BLOCK_ROWS
from .codes import FACTORS
from .column_scales import decode_factors
from .compile import jit, kernel
from .floats import widen
from .memory import float32_pointer, int64_pointer, load, store, uint32_pointer
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
def dequantize(record_address: int, first_row: int, end_row: int, out: int) -> None:
    """Write rows first_row..end_row of a weight, transposed: float32 [K, end_row - first_row] at address `out`.

    The rows lie in one band and both borders are multiples of 128.
    """
    record = int64_pointer(record_address)
    k = load(record, uint64(K))
    depth = 4 * load(record, uint64(BITS))
    band = load(record, uint64(BAND))
    padded_n = (load(record, uint64(N)) + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    band_row = first_row // band * band
    band_rows = min(band, padded_n - band_row)
    column_words = band_rows // BLOCK_ROWS * depth
    band_word = band_row // BLOCK_ROWS * depth * k
    scale = np.empty(BLOCK_ROWS, np.float32)
    zero = np.empty(BLOCK_ROWS, np.float32)
    codes = np.empty(BLOCK_ROWS, np.float32)
    for row in range(first_row, end_row, BLOCK_ROWS):
        first_word = band_word + (row - band_row) // BLOCK_ROWS * depth
        if load(record, uint64(ZERO_KIND)) == COLUMN_SCALES:
            _column_block(
                record,
                row,
                band_row,
                band_rows,
                first_word,
                column_words,
                codes,
                row - first_row,
                end_row - first_row,
                out,
            )
        else:
            _group_block(
                record,
                row,
                band_row,
                band_rows,
                first_word,
                column_words,
                codes,
                scale,
                zero,
                row - first_row,
                end_row - first_row,
                out,
            )


@jit
def _group_block(
    record: int,
    row: int,
    band_row: int,
    band_rows: int,
    first_word: int,
    column_words: int,
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    out_row: int,
    out_rows: int,
    out: int,
) -> None:
    """128 rows of all columns, scales along the inputs."""
    target = float32_pointer(out)
    k = load(record, uint64(K))
    group_size = load(record, uint64(GROUP_SIZE))
    num_groups = (k + group_size - 1) // group_size
    add_zero = load(record, uint64(ZERO_KIND)) == ADD_ZERO
    for group in range(num_groups):
        first = band_row * num_groups + group * band_rows + row - band_row
        widen(load(record, uint64(SCALE)), first, BLOCK_ROWS, load(record, uint64(SCALE_DTYPE)), scale)
        widen(load(record, uint64(ZERO)), first, BLOCK_ROWS, load(record, uint64(ZERO_DTYPE)), zero)
        for column in range(group * group_size, min(k, (group + 1) * group_size)):
            _decode_block(
                load(record, uint64(CODES)), load(record, uint64(BITS)), first_word + column * column_words, codes
            )
            at = uint64(column * out_rows + out_row)
            if add_zero:
                for i in range(uint64(BLOCK_ROWS)):
                    store(target, at + i, scale[i] * codes[i] + zero[i])
            else:
                for i in range(uint64(BLOCK_ROWS)):
                    store(target, at + i, scale[i] * (codes[i] - zero[i]))


@jit
def _column_block(
    record: int,
    row: int,
    band_row: int,
    band_rows: int,
    first_word: int,
    column_words: int,
    codes: np.ndarray,
    out_row: int,
    out_rows: int,
    out: int,
) -> None:
    """128 rows of all columns, scales along the outputs."""
    target = float32_pointer(out)
    k = load(record, uint64(K))
    first_record = np.int64(0)
    for start in range(0, band_row, load(record, uint64(BAND))):
        first_record += ((start + load(record, uint64(BAND)) + 255) // 256 - start // 256) * k
    records = (band_row + band_rows + 255) // 256 - band_row // 256
    superblock = row // 256 - band_row // 256
    quarter = row % 256 // 32
    factors = np.empty(FACTORS, np.float32)
    minimums = np.empty(((band_rows + 255) // 256 + 1) * FACTORS, np.float32)
    index = np.empty(1, np.uint64)
    one = np.ones(1, np.float32)
    for column in range(k):
        index[0] = uint64(column)
        minimums[superblock * FACTORS : (superblock + 1) * FACTORS] = float32(0)
        decode_factors(
            load(record, uint64(SCALE)), first_record, records, superblock, index, one, 0, 1, 1, factors, minimums
        )
        _decode_block(
            load(record, uint64(CODES)), load(record, uint64(BITS)), first_word + column * column_words, codes
        )
        at = uint64(column * out_rows + out_row)
        for part in range(4):
            scale = factors[quarter + part]
            minimum = minimums[superblock * FACTORS + quarter + part]
            for i in range(uint64(part * 32), uint64(part * 32 + 32)):
                store(target, at + i, scale * codes[i] - minimum)


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
