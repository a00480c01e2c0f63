"""The inner loop: sums of code columns times factors, for one block of 128 rows.

A block of a column is D = 4 * bits words; field f of word d is the code of row f * D + d, so one field of D
neighbouring words gives D neighbouring rows. A field is turned into a float where it stands, without shifting it down:
(word & mask) is code * 2**(bits * f), which float32 holds exactly. `field_units` undoes the power of two once per sum.
Fields of the upper half word are shifted down by 16 first, which keeps the sums far from the end of the float32 range.

The block is written in LLVM's portable vectors, which every CPU target lowers to what it has. Left to the loop
vectoriser, the same arithmetic took 1.4 times as long: it checks in every loop that sums and codes do not overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, types, uint64
from numba.extending import intrinsic

from ..layout import BLOCK_ROWS
from .compile import jit
from .vectors import FLOATS, INT32, LANES, WORDS, array_data, constant, multiply_add, read, splat, write

COLUMNS_AT_ONCE = 2
"""Columns that are added to a block of sums at once; lists of columns are padded to a multiple with zero factors.

4096x11008, 50 % active, one thread: 1.55 ms; with 4 columns 1.65 (more padding and spilled registers), with 8 1.65."""
FACTORS = 8
"""Factors a column has: one per 32 rows of a 256-row superblock; all equal when the scale axis is "in"."""


def _emit_block(builder: Any, bits: int, words: list[Any], factors: Any, sums: Any) -> None:
    """Emit sums[0:128] += the block at each pointer of `words`, times factors[8 * column + row // 32]."""
    depth, fields = 4 * bits, 32 // bits
    splats = [
        [splat(builder, builder.load(builder.gep(factors, [INT32(FACTORS * c + part)]))) for c in range(len(words))]
        for part in range(BLOCK_ROWS // 32)
    ]
    for lane in range(0, depth, LANES):
        low = [read(builder, word, INT32(lane), WORDS) for word in words]
        high = [builder.lshr(value, constant(16)) for value in low]
        for field in range(fields):
            row = field * depth + lane
            mask = constant(((1 << bits) - 1) << (bits * field % 16))
            total = read(builder, sums, INT32(row), FLOATS)
            for c, value in enumerate(high if bits * field >= 16 else low):
                code = builder.sitofp(builder.and_(value, mask), FLOATS)
                total = multiply_add(builder, splats[row // 32][c], code, total)
            write(builder, total, sums, INT32(row))


def _block_adder(bits: int) -> Any:
    """An intrinsic that adds one block of `COLUMNS_AT_ONCE` columns of `bits`-wide codes."""

    def add_block(
        typing_context: Any, codes: Any, offsets: Any, c: Any, word: Any, factors: Any, factor: Any, sums: Any, row: Any
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer, offset_array, column, first_word, factor_array, first_factor, sum_array, first_row = args
            offset_data = array_data(context, builder, signature.args[1], offset_array)
            factor_data = array_data(context, builder, signature.args[4], factor_array)
            sum_data = array_data(context, builder, signature.args[6], sum_array)
            words = []
            for i in range(COLUMNS_AT_ONCE):
                offset = builder.load(builder.gep(offset_data, [builder.add(column, column.type(i))]))
                words.append(builder.gep(pointer, [builder.add(offset, first_word)]))
            factor_pointer = builder.gep(factor_data, [first_factor])
            _emit_block(builder, bits, words, factor_pointer, builder.gep(sum_data, [first_row]))
            return context.get_dummy_value()

        size = types.uint64
        return types.void(codes, offsets, size, size, factors, size, sums, size), build

    return intrinsic(add_block)


_add_2, _add_4, _add_8 = _block_adder(2), _block_adder(4), _block_adder(8)


@jit
def add_columns(
    bits: int,
    codes: int,
    offsets: np.ndarray,
    word: int,
    factors: np.ndarray,
    first_factor: int,
    count: int,
    sums: np.ndarray,
    row: int,
) -> None:
    """sums[row : row + 128] += the block at `word` of `count` columns, times their factors.

    Args:
        codes: uint32 pointer to all code words.
        offsets: uint64, the first word of each column.
        word: first word of the block inside a column.
        factors: float32, `FACTORS` per column.
        first_factor: 0 or 4, the factor of the block's first 32 rows.
        count: columns, a multiple of `COLUMNS_AT_ONCE`.
    """
    for c in range(uint64(0), uint64(count), uint64(COLUMNS_AT_ONCE)):
        factor = c * uint64(FACTORS) + uint64(first_factor)
        if bits == 4:
            _add_4(codes, offsets, c, word, factors, factor, sums, row)
        elif bits == 8:
            _add_8(codes, offsets, c, word, factors, factor, sums, row)
        else:
            _add_2(codes, offsets, c, word, factors, factor, sums, row)


@jit
def field_units(bits: int) -> np.ndarray:
    """float32 [128]: what to multiply the sums of `add_columns` by, per row of a block."""
    units = np.empty(BLOCK_ROWS, np.float32)
    depth = 4 * bits
    for row in range(BLOCK_ROWS):
        field = row // depth
        units[row] = float32(1) / float32(1 << ((bits * field) % 16))
    return units
