"""Inputs as integers, for the variant that multiplies integers (dot_tile.py).

The inputs that are summed together (one group, or one pass of columns) become integers n with one unit, x = n * unit.

- float32 activations: three digits. unit is a power of two such that n has 24 bits, so an entry is off by at most
  2**-24 of the largest of them: as much as that entry's own rounding in float32. bfloat16 inputs within a factor of
  2**15 of the largest are exact. Products and sums of n and codes are then exact, which float32 sums are not.
- int8 activations: one digit, unit = largest / 127.

The three digits of n are signed bytes, n = (d0 * 256 + d1) * 256 + d2. They come from the bytes of n + 0x808080, whose
top bits are then turned around.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import float32, types, uint32
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import jit
from .memory import bits_of_float, float_of_bits

FLOAT32_DIGITS: Final = 3
INT8_DIGITS: Final = 1
CARRY: Final = 0x808080

_INT8, _INT32, _INT64 = (ir.IntType(width) for width in (8, 32, 64))
_FLOAT = ir.FloatType()

_EXPONENT: Final = 0x7F800000
# n stays within what three signed bytes hold, 0x7F7F7F = 2**23 / 1.00394.
_HEADROOM: Final = 1.004
# Smallest exponent field of a unit's source; the unit's own field is 22 less and must stay positive.
_LEAST_EXPONENT: Final = 30 << 23

SMALLEST: Final = 2.0**-90
LARGEST: Final = 2.0**100
"""Rows whose largest entry lies outside (or is not finite) take the exact path, see exact.py."""


@jit
def unit_of(largest: float, digits: int) -> float:
    """The unit of integers for inputs of magnitude up to `largest`."""
    if digits == INT8_DIGITS:
        value: float = largest * float32(1.0 / 127.0)
        return value
    exponent = uint32(bits_of_float(float32(largest * float32(_HEADROOM))) & uint32(_EXPONENT))
    power: float = float_of_bits(uint32(max(exponent, uint32(_LEAST_EXPONENT)) - uint32(22 << 23)))
    return power


@jit
def inverse_of(unit: float) -> float:
    """1 / unit, or 0 when there is nothing to divide."""
    value: float = float32(1.0) / unit if unit > float32(0.0) else float32(0.0)
    return value


def digits_of(builder: Any, values: Any, inverse: Any, digits: int) -> tuple[Any, Any]:
    """Emit n = values * inverse, rounded to nearest even, and the words that hold the digits of n.

    The most significant digit is byte 2 of three, byte 0 of one.
    """
    lanes = values.type.count
    words = ir.VectorType(_INT32, lanes)
    kind = ir.FunctionType(values.type, [values.type])
    rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{lanes}f32")
    n = builder.fptosi(builder.call(rint, [builder.fmul(values, inverse)]), words)
    if digits == INT8_DIGITS:
        return n, n
    carry = ir.Constant(words, [CARRY] * lanes)
    return n, builder.xor(builder.add(n, carry), carry)


def _group_writer(digits: int) -> Any:
    """An intrinsic: write the digits of four inputs as one chunk of dot_tile.py, and n itself.

    Its arguments: a float32 pointer to four inputs, 1 / unit, a uint32 pointer to the chunk, an int32 pointer for n.
    """

    def write_chunk(typing_context: Any, values: Any, inverse: Any, chunk: Any, integers: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            quad = ir.VectorType(_INT32, 4)
            pointer = builder.bitcast(args[0], ir.VectorType(_FLOAT, 4).as_pointer())
            loaded = builder.load(pointer, align=4)
            one = builder.insert_element(ir.Constant(loaded.type, ir.Undefined), args[1], _INT32(0))
            splat = builder.shuffle_vector(one, one, ir.Constant(quad, [0] * 4))
            n, words = digits_of(builder, loaded, splat, digits)
            builder.store(n, builder.bitcast(args[3], quad.as_pointer()), align=4)
            as_bytes = builder.bitcast(words, ir.VectorType(_INT8, 16))
            for digit in range(digits):
                # byte of this digit of the four inputs, the same word for all four row parts of a block
                picks = [4 * column + digits - 1 - digit for column in range(4)] * 4
                index = ir.Constant(ir.VectorType(_INT32, 16), picks)
                row = builder.bitcast(builder.shuffle_vector(as_bytes, as_bytes, index), quad)
                place = builder.gep(args[2], [_INT64(4 * digit)])
                builder.store(row, builder.bitcast(place, quad.as_pointer()), align=4)
            return context.get_dummy_value()

        words, floats, integers_type = (types.CPointer(t) for t in (types.uint32, types.float32, types.int32))
        return types.void(floats, types.float32, words, integers_type), build

    return intrinsic(write_chunk)


write_chunk_1, write_chunk_3 = _group_writer(INT8_DIGITS), _group_writer(FLOAT32_DIGITS)


def _factor_quantizer(digits: int) -> Any:
    """An intrinsic: turn the factors of a pass (eight per column, one per 32 rows) into digits.

    Its arguments: a float32 pointer to the factors of 4 * chunks columns, a uint32 pointer to the bits of the eight
    largest magnitudes, the number of chunks, a uint32 pointer to the digits (chunk c has digit d of the eight parts at
    8 * (c * digits + d)), a float32 pointer to the eight units.
    """

    def quantize_factors(typing_context: Any, factors: Any, largest: Any, chunks: Any, out: Any, units: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit_quantize_factors(builder, digits, *args)
            return context.get_dummy_value()

        floats, words = types.CPointer(types.float32), types.CPointer(types.uint32)
        return types.void(floats, words, types.uint64, words, floats), build

    return intrinsic(quantize_factors)


def _emit_quantize_factors(
    builder: Any, digits: int, factors: Any, largest_at: Any, chunks: Any, out: Any, units: Any
) -> None:
    words, floats = ir.VectorType(_INT32, 8), ir.VectorType(_FLOAT, 8)

    def constant(value: Any, kind: Any = words) -> Any:
        return ir.Constant(kind, [value] * 8)

    def column(index: Any) -> Any:
        place = builder.gep(factors, [builder.mul(index, _INT64(8))])
        return builder.load(builder.bitcast(place, floats.as_pointer()), align=4)

    largest = builder.bitcast(builder.load(builder.bitcast(largest_at, words.as_pointer()), align=4), floats)
    if digits == INT8_DIGITS:
        unit = builder.fmul(largest, constant(1.0 / 127.0, floats))
        quotient = builder.fdiv(constant(1.0, floats), unit)
        positive = builder.fcmp_ordered(">", unit, constant(0.0, floats))
        inverse = builder.select(positive, quotient, constant(0.0, floats))
    else:
        scaled = builder.bitcast(builder.fmul(largest, constant(_HEADROOM, floats)), words)
        exponent = builder.and_(scaled, constant(_EXPONENT))
        least = constant(_LEAST_EXPONENT)
        exponent = builder.select(builder.icmp_unsigned(">", exponent, least), exponent, least)
        field = builder.sub(exponent, constant(22 << 23))
        unit = builder.bitcast(field, floats)
        inverse = builder.bitcast(builder.sub(constant(254 << 23), field), floats)
    builder.store(unit, builder.bitcast(units, floats.as_pointer()), align=4)
    with cgutils.for_range(builder, chunks) as loop:
        first = builder.mul(loop.index, _INT64(4))
        columns = [digits_of(builder, column(builder.add(first, _INT64(c))), inverse, digits)[1] for c in range(4)]
        for digit in range(digits):
            # Byte of this digit of every column, put side by side: one word per part.
            shift = 8 * (digits - 1 - digit)
            packed = constant(0)
            for c, value in enumerate(columns):
                byte = builder.and_(value, constant(0xFF << shift))
                move = 8 * c - shift
                moved = builder.shl(byte, constant(move)) if move >= 0 else builder.lshr(byte, constant(-move))
                packed = builder.or_(packed, moved)
            place = builder.gep(
                out, [builder.mul(builder.add(builder.mul(loop.index, _INT64(digits)), _INT64(digit)), _INT64(8))]
            )
            builder.store(packed, builder.bitcast(place, words.as_pointer()), align=4)


quantize_factors_1, quantize_factors_3 = _factor_quantizer(INT8_DIGITS), _factor_quantizer(FLOAT32_DIGITS)
