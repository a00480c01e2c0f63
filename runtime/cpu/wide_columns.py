"""Column records (scales along the outputs) for the AVX-512 variant: as `decode_factors`, in vector instructions.

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
from .vectors import FLOATS, INT32, LANES, array_data, constant, read, splat, write


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
    """The loop over the columns of a pass. The minimums stay in a register: through memory, each addition would wait
    for the store before it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words_at, first, width, index_at, values_at, begin, number, end, *_, base = args
        factor_data = array_data(context, builder, signature.args[8], args[8])
        minimum_data = array_data(context, builder, signature.args[9], args[9])
        total = cgutils.alloca_once_value(builder, read(builder, minimum_data, base, FLOATS))
        following = builder.add(begin, number)
        with cgutils.for_range(builder, number) as loop:

            def record_of(entry: Any) -> Any:
                column = builder.load(builder.gep(index_at, [entry]))
                return builder.gep(words_at, [builder.add(first, builder.mul(column, width))])

            next_entry = builder.add(following, loop.index)
            next_entry = builder.select(builder.icmp_unsigned("<", next_entry, end), next_entry, end)
            prefetch_line(builder, record_of(next_entry))  # the record that the next pass reads here
            entry = builder.add(begin, loop.index)
            x = builder.load(builder.gep(values_at, [entry]))
            factor, minimum = _factors_of(builder, record_of(entry), x)
            write(builder, factor, factor_data, builder.mul(loop.index, loop.index.type(FACTORS)))
            builder.store(builder.fadd(builder.load(total), minimum), total)
        write(builder, builder.load(total), minimum_data, base)
        return context.get_dummy_value()

    size, floats = types.uint64, types.CPointer(types.float32)
    places = types.CPointer(types.uint64)
    return types.void(words, size, size, places, floats, size, size, size, factors, minimums, size), build


def _factors_of(builder: Any, record_at: Any, x: Any) -> tuple[Any, Any]:
    """x * d * scale6 and x * dmin * min6 of the eight blocks of a record."""
    record = [builder.load(builder.gep(record_at, [INT32(i)])) for i in range(COLUMN_RECORD_WORDS)]
    wide = builder.fpext(builder.bitcast(record[0], ir.VectorType(ir.HalfType(), 2)), ir.VectorType(ir.FloatType(), 2))
    scale, minimum = (builder.fmul(x, builder.extract_element(wide, INT32(i))) for i in range(2))
    shifts = constant([4 * lane for lane in range(LANES)])
    lows = [builder.and_(builder.lshr(splat(builder, value), shifts), constant(15)) for value in record[1:3]]
    highs = builder.lshr(splat(builder, record[3]), shifts)
    scale6 = builder.or_(lows[0], builder.shl(builder.and_(highs, constant(3)), constant(4)))
    min6 = builder.or_(lows[1], builder.shl(builder.and_(highs, constant(12)), constant(2)))
    return (
        builder.fmul(splat(builder, scale), builder.sitofp(scale6, FLOATS)),
        builder.fmul(splat(builder, minimum), builder.sitofp(min6, FLOATS)),
    )
