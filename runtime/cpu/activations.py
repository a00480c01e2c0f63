"""Activation functions of a gated MLP, in float32."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import float32, uint32, uint64

from .compile import jit
from .memory import bits_of_float, float_of_bits

SILU: Final = 0
GELU: Final = 1
GELU_TANH: Final = 2
RELU: Final = 3
RELU2: Final = 4
ACTIVATION_CODES: Final = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "relu": RELU, "relu2": RELU2}

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has so few bits that its product with a small integer is exact.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# Adding 1.5 * 2**23 rounds to the nearest integer and leaves it in the low bits, without an int conversion.
_ROUNDER = np.float32(12582912.0)
_LARGEST = np.float32(88.0)
_SQRT_HALF = np.float32(math.sqrt(0.5))
_TWO_SQRT_2_OVER_PI = np.float32(2.0 * math.sqrt(2.0 / math.pi))
_GELU_CUBIC = np.float32(0.044715)


@jit
def exp_clamped(x: float) -> float:
    """e**x for |x| <= 88, and e**-88 or e**88 beyond; NaN stays NaN. Relative error below 2e-7.

    Vectorises, unlike the C library's: silu of 11008 entries takes 3 us with this one and 31 us with that.
    """
    if x > _LARGEST:
        x = _LARGEST
    if x < -_LARGEST:
        x = -_LARGEST
    shifted = x * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    # Taylor series of e**r to the sixth power; |r| <= ln(2) / 2, so the next term is below 1.2e-7 of the sum.
    p = float32(1.0 / 720.0)
    p = p * r + float32(1.0 / 120.0)
    p = p * r + float32(1.0 / 24.0)
    p = p * r + float32(1.0 / 6.0)
    p = p * r + float32(0.5)
    p = p * r + float32(1.0)
    p = p * r + float32(1.0)
    # The low bits of `shifted` are n; moved to the exponent they multiply by 2**n.
    power: float = float_of_bits(uint32(bits_of_float(p) + (bits_of_float(shifted) << uint32(23))))
    return power


@jit
def _sigmoid(x: float) -> float:
    value: float = float32(1.0) / (float32(1.0) + exp_clamped(-x))
    return value


@jit
def activate(values: np.ndarray, count: int, activation: int) -> None:
    """values[0:count] = act(values[0:count]), in place."""
    if activation == SILU:
        for i in range(uint64(count)):
            values[i] = values[i] * _sigmoid(values[i])
    elif activation == GELU:
        for i in range(uint64(count)):
            values[i] = float32(0.5) * values[i] * (float32(1.0) + math.erf(values[i] * _SQRT_HALF))
    elif activation == GELU_TANH:
        # 0.5 * (1 + tanh(u)) is sigmoid(2 u)
        for i in range(uint64(count)):
            v = values[i]
            values[i] = v * _sigmoid(_TWO_SQRT_2_OVER_PI * (v + _GELU_CUBIC * v * v * v))
    elif activation == RELU:
        for i in range(uint64(count)):
            values[i] = float32(0.0) if values[i] < float32(0.0) else values[i]
    else:
        for i in range(uint64(count)):
            v = float32(0.0) if values[i] < float32(0.0) else values[i]
            values[i] = v * v
