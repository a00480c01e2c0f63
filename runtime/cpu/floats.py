"""float16 and bfloat16 in compiled code: dtype codes, exact widening, rounding to nearest even.

Written with integer arithmetic, which vectorises on every CPU; hardware conversions do not exist everywhere, and unlike
them none of this changes when the process flushes subnormals to zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numba import uint32, uint64

from .compile import jit
from .memory import (
    bits_of_float,
    float32_pointer,
    float_of_bits,
    load,
    store,
    uint8_pointer,
    uint16_pointer,
)

FLOAT32: Final = 0
FLOAT16: Final = 1
BFLOAT16: Final = 2
UINT8: Final = 3
DTYPE_CODES: Final[dict[torch.dtype, int]] = {
    torch.float32: FLOAT32,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.uint8: UINT8,
}

_SIGN = np.uint32(0x8000)
_MAGNITUDE = np.uint32(0x7FFF)
_INFINITY = np.uint32(0x7F800000)
_HALF_BIAS = np.uint32(112 << 23)  # exponent of float32 minus exponent of float16
_SMALLEST_NORMAL_HALF = np.uint32(113 << 23)  # 2**-14
_TWO_TO_MINUS_14 = np.float32(2.0**-14)
_ONE_HALF = np.uint32(126 << 23)


@jit
def float_of_half(half: int) -> float:
    """The float32 value of float16 bits (uint32, upper half zero)."""
    magnitude = uint32((half & _MAGNITUDE) << uint32(13))
    exponent = uint32(half & uint32(0x7C00))
    bits = uint32(magnitude + _HALF_BIAS)
    if exponent == uint32(0x7C00):
        bits = uint32(magnitude | _INFINITY)
    if exponent == uint32(0):
        bits = bits_of_float(float_of_bits(uint32(magnitude | _SMALLEST_NORMAL_HALF)) - _TWO_TO_MINUS_14)
    value: float = float_of_bits(uint32(bits | ((half & _SIGN) << uint32(16))))
    return value


@jit
def float_of_bfloat(bfloat: int) -> float:
    """The float32 value of bfloat16 bits (uint32, upper half zero)."""
    value: float = float_of_bits(uint32(bfloat << uint32(16)))
    return value


@jit
def half_of_float(value: float) -> int:
    """float16 bits of a float32, rounded to nearest even."""
    bits = bits_of_float(value)
    magnitude = uint32(bits & uint32(0x7FFFFFFF))
    # Rebias the exponent and round to nearest even at bit 13; a carry moves into the exponent as it should.
    half = uint32((magnitude - _HALF_BIAS + uint32(0xFFF) + ((magnitude >> uint32(13)) & uint32(1))) >> uint32(13))
    if magnitude < _SMALLEST_NORMAL_HALF:
        # Adding 0.5 puts the last bit of a float16 subnormal at the last bit of the float32 mantissa.
        half = uint32(bits_of_float(float_of_bits(magnitude) + np.float32(0.5)) - _ONE_HALF)
    if magnitude >= uint32(0x47800000):  # 65536 and more; 65520..65536 has rounded up to infinity above
        half = uint32(0x7C00)
    if magnitude > _INFINITY:
        half = uint32(0x7E00)
    half = uint32(half | ((bits >> uint32(16)) & _SIGN))
    result: int = half
    return result


@jit
def bfloat_of_float(value: float) -> int:
    """bfloat16 bits of a float32, rounded to nearest even."""
    bits = bits_of_float(value)
    rounded = uint32((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))
    if uint32(bits & uint32(0x7FFFFFFF)) > _INFINITY:
        rounded = uint32((bits >> uint32(16)) | uint32(0x40))  # a NaN stays one, whatever its low bits were
    result: int = rounded
    return result


@jit
def widen(address: int, start: int, count: int, dtype: int, out: np.ndarray) -> None:
    """out[0:count] = the values start..start+count at `address`, as float32."""
    first = uint64(start)
    if dtype == FLOAT32:
        floats = float32_pointer(address)
        for i in range(uint64(count)):
            out[i] = load(floats, first + i)
    elif dtype == FLOAT16:
        halves = uint16_pointer(address)
        for i in range(uint64(count)):
            out[i] = float_of_half(uint32(load(halves, first + i)))
    elif dtype == BFLOAT16:
        bfloats = uint16_pointer(address)
        for i in range(uint64(count)):
            out[i] = float_of_bfloat(uint32(load(bfloats, first + i)))
    else:
        integers = uint8_pointer(address)
        for i in range(uint64(count)):
            out[i] = np.float32(load(integers, first + i))


@jit
def narrow(values: np.ndarray, start: int, count: int, dtype: int, address: int, place: int) -> None:
    """Write values[start : start + count] (float32) from index `place` on at `address`, rounded to the dtype."""
    first, to = uint64(start), uint64(place)
    if dtype == FLOAT32:
        floats = float32_pointer(address)
        for i in range(uint64(count)):
            store(floats, to + i, values[first + i])
    elif dtype == FLOAT16:
        halves = uint16_pointer(address)
        for i in range(uint64(count)):
            store(halves, to + i, half_of_float(values[first + i]))
    else:
        bfloats = uint16_pointer(address)
        for i in range(uint64(count)):
            store(bfloats, to + i, bfloat_of_float(values[first + i]))
