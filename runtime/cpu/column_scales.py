"""Scales along the outputs: reading the 16-byte records of a column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types, uint32, uint64
from numba.extending import intrinsic

from ..layout import COLUMN_RECORD_WORDS
from .codes import FACTORS
from .compile import jit
from .floats import float_of_half
from .memory import float32_pointer, load, prefetch, uint32_pointer, uint64_pointer
from .vectors import FLOATS, LANES, array_data, constant, multiply_add, read, splat, write


@jit
def decode_factors(
    scales: int,
    first_record: int,
    records: int,
    superblock: int,
    active_index: int,
    active_value: int,
    start: int,
    count: int,
    num_active: int,
    factors: np.ndarray,
    minimums: np.ndarray,
    first_minimum: int,
) -> None:
    """Fill the factors x_k * d * scale6 of one superblock for `count` active columns, and add up x_k * dmin * min6.

    Args:
        scales: address of the packed column records.
        first_record: where the band's records begin; `records` is how many a column has in this band.
        superblock: which of them.
        active_index: address of uint64; active_value: address of float32.
        factors: float32, `FACTORS` per column, written.
        minimums: float32, `FACTORS` of them from `first_minimum` on, added to.
    """
    words = uint32_pointer(scales)
    index, values = uint64_pointer(active_index), float32_pointer(active_value)
    base = uint64(first_minimum)
    column_words = uint64(records * COLUMN_RECORD_WORDS)
    first_word = uint64((first_record + superblock) * COLUMN_RECORD_WORDS)
    for c in range(count):
        # The record that the next pass reads here. Without this 4096x11008 takes 1.7 times as long.
        following = load(index, min(uint64(start + count + c), uint64(num_active - 1)))
        prefetch(words, first_word + following * column_words)
        k = load(index, uint64(start + c))
        word = first_word + k * column_words
        halves = uint32(load(words, word))
        low_scale = load(words, word + uint64(1))
        low_min = load(words, word + uint64(2))
        high = load(words, word + uint64(3))
        x = load(values, uint64(start + c))
        scale = x * float_of_half(uint32(halves & uint32(0xFFFF)))
        minimum = x * float_of_half(uint32(halves >> uint32(16)))
        _decode_record(low_scale, low_min, high, scale, minimum, factors, uint64(c * FACTORS), minimums, base)


@intrinsic  # type: ignore[untyped-decorator]
def _decode_record(
    typing_context: Any,
    low_scale: Any,
    low_min: Any,
    high: Any,
    scale: Any,
    minimum: Any,
    factors: Any,
    first: Any,
    minimums: Any,
    base: Any,
) -> Any:
    """For the 8 blocks of a record: factors[first + i] = scale * scale6[i], minimums[base + i] += minimum * min6[i]."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        shifts = constant([4 * lane for lane in range(LANES)])
        lows = [builder.and_(builder.lshr(splat(builder, word), shifts), constant(15)) for word in args[:2]]
        highs = builder.lshr(splat(builder, args[2]), shifts)
        scale_high = builder.shl(builder.and_(highs, constant(3)), constant(4))
        min_high = builder.shl(builder.and_(highs, constant(12)), constant(2))
        scales = builder.sitofp(builder.or_(lows[0], scale_high), FLOATS)
        mins = builder.sitofp(builder.or_(lows[1], min_high), FLOATS)
        factor_data = array_data(context, builder, signature.args[5], args[5])
        minimum_data = array_data(context, builder, signature.args[7], args[7])
        write(builder, builder.fmul(splat(builder, args[3]), scales), factor_data, args[6])
        total = read(builder, minimum_data, args[8], FLOATS)
        write(builder, multiply_add(builder, splat(builder, args[4]), mins, total), minimum_data, args[8])
        return context.get_dummy_value()

    word, real, size = types.uint32, types.float32, types.uint64
    return types.void(word, word, word, real, real, factors, size, minimums, size), build
