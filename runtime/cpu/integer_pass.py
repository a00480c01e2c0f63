"""One pass of columns of the integer kernels: which columns, how many, how far ahead they are prefetched."""

from __future__ import annotations

import numpy as np
from numba import uint64

from ..layout import BLOCK_ROWS
from .compile import jit
from .dot_tile import (
    add_chunks_2x1,
    add_chunks_2x3,
    add_chunks_4x1,
    add_chunks_4x3,
    add_chunks_8x1,
    add_chunks_8x3,
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

PASS_COLUMNS = 16
"""Columns of a pass. 4096x11008, 50 % active, one thread: 1.06 ms; 8 columns 1.14."""
LAST_PASS_COLUMNS = 24
"""A pass takes this many when they are the last: a second pass of a few columns costs more than a longer one."""
AHEAD_ROWS = 4 * BLOCK_ROWS
"""How far ahead of the sums a column is prefetched, at its end into the column that the next pass reads in its place.
4096x11008, 50 % active: 256 rows 1.12 ms, 512 rows 1.06, 1024 rows 1.11; the next pass's block of the same rows, into
the second-level cache, 1.16; no prefetch 1.34."""


@jit
def place_columns(
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
def add_chunks(
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
