"""Column records (scales along the outputs) for the integer kernels: as `decode_factors`, in vector instructions.

The CPU widens the two half floats of a record; in the integer arithmetic of floats.py that took longer than the rest.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .codes import FACTORS
from .memory import prefetch_line
from .vectors import FLOATS, INT32, LANES, constant, read, write

_PAIR = 2 * LANES
_PAIR_WORDS, _PAIR_FLOATS = ir.VectorType(INT32, _PAIR), ir.VectorType(ir.FloatType(), _PAIR)
_FIRST_HALF = ir.Constant(ir.VectorType(ir.IntType(1), _PAIR), [1] * LANES + [0] * LANES)
_MAGNITUDE = 0x7FFFFFFF


@intrinsic  # type: ignore[untyped-decorator]
def decode_factors_wide(
    typing_context: Any,
    records: Any,
    ahead: Any,
    shift: Any,
    values: Any,
    pairs: Any,
    factors: Any,
    minimums: Any,
    largest: Any,
) -> Any:
    """Write the factors x_k * d * scale6 of one superblock for the columns of a pass; add up x_k * dmin * min6.

    Its arguments:
        records: uint64 pointer, the address of each column's first record; `shift` bytes on is the one to read.
        ahead: the same of the columns of the next pass, to prefetch.
        values: float32 pointer, the inputs of the columns.
        pairs: half the number of columns.
        factors: float32 pointer, `FACTORS` per column, written.
        minimums: float32 pointer to `FACTORS`, added to.
        largest: uint32 pointer to `FACTORS`, written: the bits of the largest magnitude among the factors of each part.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        records_at, ahead_at, offset, values_at, number, factors_at, minimums_at, largest_at = args
        # In registers: through memory, each step would wait for the store before it. Magnitudes are compared as
        # integers: the order is the same, and a NaN could not hide.
        total = cgutils.alloca_once_value(builder, ir.Constant(_PAIR_FLOATS, [0.0] * _PAIR))
        top = cgutils.alloca_once_value(builder, _words([0] * _PAIR))
        size = number.type

        def record_at(list_at: Any, column: Any, kind: Any) -> Any:
            address = builder.add(builder.load(builder.gep(list_at, [column])), offset)
            return builder.inttoptr(address, kind.as_pointer())

        with cgutils.for_range(builder, number) as loop:
            first = builder.shl(loop.index, size(1))
            columns = [first, builder.add(first, size(1))]
            for column in columns:
                prefetch_line(builder, record_at(ahead_at, column, ir.IntType(8)))
            x = [builder.load(builder.gep(values_at, [column])) for column in columns]
            factor, minimum = _factors_of(builder, [record_at(records_at, column, INT32) for column in columns], x)
            write(builder, factor, factors_at, builder.mul(first, size(FACTORS)))
            builder.store(builder.fadd(builder.load(total), minimum), total)
            magnitude = builder.and_(builder.bitcast(factor, _PAIR_WORDS), _words([_MAGNITUDE] * _PAIR))
            old = builder.load(top)
            builder.store(builder.select(builder.icmp_unsigned(">", magnitude, old), magnitude, old), top)
        halves = [constant(list(range(i, i + LANES))) for i in (0, LANES)]
        sums, tops = builder.load(total), builder.load(top)
        sums = builder.fadd(*[builder.shuffle_vector(sums, sums, half) for half in halves])
        write(builder, builder.fadd(read(builder, minimums_at, size(0), FLOATS), sums), minimums_at, size(0))
        a, b = (builder.shuffle_vector(tops, tops, half) for half in halves)
        write(builder, builder.select(builder.icmp_unsigned(">", a, b), a, b), largest_at, size(0))
        return context.get_dummy_value()

    size, floats, places = types.uint64, types.CPointer(types.float32), types.CPointer(types.uint64)
    return types.void(places, places, size, floats, size, floats, floats, types.CPointer(types.uint32)), build


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
