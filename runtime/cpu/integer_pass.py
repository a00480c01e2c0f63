"""One pass of columns of the integer kernels: which columns, how many, how far ahead they are prefetched."""

from __future__ import annotations

import numpy as np
from numba import uint64

from ..layout import BLOCK_ROWS
from .compile import jit
from .dot_tile import (
    CHUNK_COLUMNS,
    add_pass_2x1,
    add_pass_2x3,
    add_pass_4x1,
    add_pass_4x3,
    add_pass_8x1,
    add_pass_8x3,
)
from .fixed_point import FLOAT32_DIGITS
from .inputs import (
    COUNT,
    INDEX,
)
from .memory import (
    load,
    uint64_pointer,
)
from .record import (
    BITS,
    K,
)

MOST_CHUNKS = 4
"""Chunks of four columns that a pass has at most. 11008x4096 and 4096x11008, 50 % active, huge pages: 1.14 and 0.98 ms;
with 5 chunks 1.20 and 1.04 (too many streams of memory at once)."""
MOST_COLUMNS = CHUNK_COLUMNS * MOST_CHUNKS


@jit
def pass_columns(left: int) -> int:
    """Columns of the next pass, when `left` remain: as few passes as can be, of about the same length."""
    chunks = (left + CHUNK_COLUMNS - 1) // CHUNK_COLUMNS
    passes = (chunks + MOST_CHUNKS - 1) // MOST_CHUNKS
    columns: int = min(left, (chunks + passes - 1) // passes * CHUNK_COLUMNS)
    return columns


@jit
def place_columns(
    record: int,
    inputs: int,
    band_row: int,
    band_end: int,
    start: int,
    count: int,
    first_word: int,
    words: int,
    offsets: np.ndarray,
    ahead: np.ndarray,
    walk: np.ndarray,
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
        following = load(index, uint64(min(start + count + c, last)))
        ahead[c] = band_word + following * column_words + uint64(first_word)
    walk[0] = ahead[0]
    walk[1] = ahead[0] + uint64(words)
    walk[2] = uint64(0)
    walk[3] = uint64(words)
    length: int = chunks
    return length


@jit
def add_pass(
    bits: int,
    digits: int,
    codes: int,
    word: int,
    offsets: int,
    ahead: int,
    walk: int,
    blocks: int,
    chunks: int,
    inputs: int,
    chunk_words: int,
    digit_words: int,
    units: int,
    part_step: int,
    first: int,
    sums: int,
    rows: int,
    digits_step: int,
    units_step: int,
    sums_step: int,
) -> None:
    """The intrinsic of dot_tile.py for a width of codes and a number of digits."""
    if digits == FLOAT32_DIGITS:
        if bits == 4:
            add_pass_4x3(
                codes, word, offsets, ahead, walk, blocks, chunks, inputs, chunk_words,
                digit_words, units, part_step, first, sums, rows, digits_step, units_step, sums_step,
            )  # fmt: skip
        elif bits == 8:
            add_pass_8x3(
                codes, word, offsets, ahead, walk, blocks, chunks, inputs, chunk_words,
                digit_words, units, part_step, first, sums, rows, digits_step, units_step, sums_step,
            )  # fmt: skip
        else:
            add_pass_2x3(
                codes, word, offsets, ahead, walk, blocks, chunks, inputs, chunk_words,
                digit_words, units, part_step, first, sums, rows, digits_step, units_step, sums_step,
            )  # fmt: skip
    elif bits == 4:
        add_pass_4x1(
            codes, word, offsets, ahead, walk, blocks, chunks, inputs, chunk_words, digit_words,
            units, part_step, first, sums, rows, digits_step, units_step, sums_step,
        )  # fmt: skip
    elif bits == 8:
        add_pass_8x1(
            codes, word, offsets, ahead, walk, blocks, chunks, inputs, chunk_words, digit_words,
            units, part_step, first, sums, rows, digits_step, units_step, sums_step,
        )  # fmt: skip
    else:
        add_pass_2x1(
            codes, word, offsets, ahead, walk, blocks, chunks, inputs, chunk_words, digit_words,
            units, part_step, first, sums, rows, digits_step, units_step, sums_step,
        )  # fmt: skip
