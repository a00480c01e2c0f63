"""One pass of columns of the integer kernels: which columns, how many, and the inner loop for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types, uint64
from numba.extending import intrinsic

from ..layout import BLOCK_ROWS
from .compile import jit, jit_for
from .dot_tile import CHUNK_COLUMNS, MOST_CHUNKS, PASS_END, PASS_WALK, Tile
from .fixed_point import FLOAT32_DIGITS, INT8_DIGITS
from .inputs import COUNT, INDEX
from .memory import load, uint64_pointer
from .record import BITS, K

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
    start_row: int,
    end_row: int,
    start: int,
    count: int,
    offsets: np.ndarray,
    ahead: np.ndarray,
    fields: np.ndarray,
) -> int:
    """Fill the first words of the columns of a pass, and where it prefetches; return its chunks.

    The last chunk is filled up with a column that is there anyway; its inputs are zero.

    Args:
        start_row, end_row: the rows of the band that are multiplied.
        start, count: the active columns of the pass.
        offsets, ahead: uint64 [MOST_COLUMNS], written.
        fields: int64 [PASS_FIELDS]; `PASS_END` and the walk are written.
    """
    depth = uint64(4 * load(record, uint64(BITS)))
    column_words = uint64((band_end - band_row) // BLOCK_ROWS) * depth
    band_word = uint64(band_row // BLOCK_ROWS) * depth * uint64(load(record, uint64(K)))
    first_word = uint64((start_row - band_row) // BLOCK_ROWS) * depth
    index = uint64_pointer(load(inputs, uint64(INDEX)))
    last = load(inputs, uint64(COUNT)) - 1
    chunks = (count + 3) // 4
    for c in range(chunks * 4):
        offsets[c] = band_word + load(index, uint64(start + min(c, count - 1))) * column_words
        following = load(index, uint64(min(start + count + c, last)))
        ahead[c] = band_word + following * column_words + first_word
    words = (end_row - start_row) // BLOCK_ROWS * 4 * load(record, uint64(BITS))
    fields[PASS_END] = np.int64(first_word) + words
    fields[PASS_WALK] = np.int64(ahead[0])
    fields[PASS_WALK + 1] = np.int64(ahead[0]) + words
    fields[PASS_WALK + 2] = 0
    fields[PASS_WALK + 3] = words
    length: int = chunks
    return length


def make_add_pass(tile: type[Tile]) -> Callable[..., Any]:
    """The inner loop for a kind of CPU: add_pass(bits, digits, address of `PASS_FIELDS` int64)."""
    add_2x1, add_4x1, add_8x1 = (_pass_adder(tile(bits, INT8_DIGITS)) for bits in (2, 4, 8))
    add_2x3, add_4x3, add_8x3 = (_pass_adder(tile(bits, FLOAT32_DIGITS)) for bits in (2, 4, 8))

    @jit_for(tile.name)
    def add_pass(bits: int, digits: int, fields: int) -> None:
        """sums[r, b, 0:128] = or += units * (codes . digits) for the blocks b of a pass and the rows r of x."""
        if digits == FLOAT32_DIGITS:
            if bits == 4:
                add_4x3(fields)
            elif bits == 8:
                add_8x3(fields)
            else:
                add_2x3(fields)
        elif bits == 4:
            add_4x1(fields)
        elif bits == 8:
            add_8x1(fields)
        else:
            add_2x1(fields)

    return add_pass


def _pass_adder(tile: Tile) -> Any:
    """An intrinsic: one pass, of which the address of the fields is given."""

    def add(typing_context: Any, fields: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], context.get_value_type(types.CPointer(types.int64)))
            tile.emit(builder, pointer)
            return context.get_dummy_value()

        return types.void(types.int64), build

    return intrinsic(add)
