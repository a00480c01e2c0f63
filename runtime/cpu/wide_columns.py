"""Column records (scales along the outputs) for the integer kernels: as `decode_factors`, in vector instructions.

The CPU widens the two half floats of a record; in the integer arithmetic of floats.py that took longer than the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from ..layout import COLUMN_RECORD_WORDS
from .codes import FACTORS
from .compile import jit
from .memory import float32_pointer, prefetch_line, uint32_pointer, uint64_pointer
from .vectors import FLOATS, INT32, LANES, array_data, constant, read, write

_PAIR = 2 * LANES
_PAIR_WORDS, _PAIR_FLOATS = ir.VectorType(INT32, _PAIR), ir.VectorType(ir.FloatType(), _PAIR)
_FIRST_HALF = ir.Constant(ir.VectorType(ir.IntType(1), _PAIR), [1] * LANES + [0] * LANES)


@jit
def decode_factors_wide(
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
    """See `decode_factors` in column_scales.py."""
    _decode(
        uint32_pointer(scales),
        uint64((first_record + superblock) * COLUMN_RECORD_WORDS),
        uint64(records * COLUMN_RECORD_WORDS),
        uint64_pointer(active_index),
        float32_pointer(active_value),
        uint64(start),
        uint64(count),
        uint64(num_active - 1),
        factors,
        minimums,
        uint64(first_minimum),
    )


@intrinsic  # type: ignore[untyped-decorator]
def _decode(
    typing_context: Any,
    words: Any,
    first_word: Any,
    column_words: Any,
    index: Any,
    values: Any,
    start: Any,
    count: Any,
    last: Any,
    factors: Any,
    minimums: Any,
    first_minimum: Any,
) -> Any:
    """The loop over the columns of a pass, two at a time. The minimums stay in a register: through memory, each
    addition would wait for the store before it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words_at, first, width, index_at, values_at, begin, number, end, *_, base = args
        factor_data = array_data(context, builder, signature.args[8], args[8])
        minimum_data = array_data(context, builder, signature.args[9], args[9])
        total = cgutils.alloca_once_value(builder, ir.Constant(_PAIR_FLOATS, [0.0] * _PAIR))
        size = number.type
        stop = builder.add(begin, number)

        def record_of(entry: Any) -> Any:
            bounded = builder.select(builder.icmp_unsigned("<", entry, end), entry, end)
            column = builder.load(builder.gep(index_at, [bounded]))
            return builder.gep(words_at, [builder.add(first, builder.mul(column, width))])

        with cgutils.for_range(builder, builder.lshr(builder.add(number, size(1)), size(1))) as loop:
            c = builder.shl(loop.index, size(1))
            entries = [builder.add(begin, c), builder.add(begin, builder.add(c, size(1)))]
            for entry in entries:
                prefetch_line(builder, record_of(builder.add(entry, number)))  # what the next pass reads here
            # An odd pass ends with a column of another pass, times zero.
            inside = builder.icmp_unsigned("<", entries[1], stop)
            x = [builder.load(builder.gep(values_at, [entry])) for entry in entries]
            x[1] = builder.select(inside, x[1], ir.Constant(ir.FloatType(), 0.0))
            records = [record_of(entries[0]), record_of(builder.select(inside, entries[1], entries[0]))]
            factor, minimum = _factors_of(builder, records, x)
            write(builder, factor, factor_data, builder.mul(c, size(FACTORS)))
            builder.store(builder.fadd(builder.load(total), minimum), total)
        pair = builder.load(total)
        halves = [builder.shuffle_vector(pair, pair, constant(list(range(i, i + LANES)))) for i in (0, LANES)]
        old = read(builder, minimum_data, base, FLOATS)
        write(builder, builder.fadd(old, builder.fadd(*halves)), minimum_data, base)
        return context.get_dummy_value()

    size, floats = types.uint64, types.CPointer(types.float32)
    places = types.CPointer(types.uint64)
    return types.void(words, size, size, places, floats, size, size, size, factors, minimums, size), build


def _factors_of(builder: Any, records: list[Any], x: list[Any]) -> tuple[Any, Any]:
    """x * d * scale6 and x * dmin * min6 of the eight blocks of two records, one after the other."""
    halves = ir.Constant(ir.VectorType(INT32, 2), ir.Undefined)
    inputs = ir.Constant(ir.VectorType(ir.FloatType(), 4), ir.Undefined)
    for i, record in enumerate(records):
        halves = builder.insert_element(halves, builder.load(record), INT32(i))
        for j in range(2):
            inputs = builder.insert_element(inputs, x[i], INT32(2 * i + j))
    wide = builder.fpext(builder.bitcast(halves, ir.VectorType(ir.HalfType(), 4)), inputs.type)
    scaled = builder.fmul(wide, inputs)  # x * d and x * dmin of both
    scale, minimum = (builder.shuffle_vector(scaled, scaled, _words([i] * LANES + [i + 2] * LANES)) for i in range(2))

    def both(word: int) -> Any:
        splats = []
        for record in records:
            value = builder.load(builder.gep(record, [INT32(word)]))
            one = builder.insert_element(ir.Constant(_PAIR_WORDS, ir.Undefined), value, INT32(0))
            splats.append(builder.shuffle_vector(one, one, _words([0] * _PAIR)))
        return builder.select(_FIRST_HALF, *splats)

    shifts = _words([4 * lane for lane in range(LANES)] * 2)
    lows = [builder.and_(builder.lshr(both(word), shifts), _words([15] * _PAIR)) for word in (1, 2)]
    highs = builder.lshr(both(3), shifts)
    scale6 = builder.or_(lows[0], builder.shl(builder.and_(highs, _words([3] * _PAIR)), _words([4] * _PAIR)))
    min6 = builder.or_(lows[1], builder.shl(builder.and_(highs, _words([12] * _PAIR)), _words([2] * _PAIR)))
    return (
        builder.fmul(scale, builder.sitofp(scale6, _PAIR_FLOATS)),
        builder.fmul(minimum, builder.sitofp(min6, _PAIR_FLOATS)),
    )


def _words(values: list[int]) -> Any:
    return ir.Constant(ir.VectorType(INT32, len(values)), values)
