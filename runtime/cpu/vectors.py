"""Eight-lane vectors in LLVM's portable form, which every CPU target lowers to the registers it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

LANES = 8
"""Lanes of a vector. 16 gave the same code on AVX-512, where LLVM prefers registers of 8."""
INT32 = ir.IntType(32)
WORDS = ir.VectorType(INT32, LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)


def constant(values: int | Sequence[int]) -> Any:
    """A constant vector of words: one value per lane, or the same in all."""
    return ir.Constant(WORDS, [values] * LANES if isinstance(values, int) else list(values))


def splat(builder: Any, value: Any) -> Any:
    """A vector with a scalar (float or 32-bit integer) in every lane."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value, INT32(0))
    return builder.shuffle_vector(one, one, constant(0))


def read(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    """The vector of type `kind` at pointer[index], aligned as its elements are."""
    return builder.load(_place(builder, pointer, index, kind), align=4)


def write(builder: Any, value: Any, pointer: Any, index: Any) -> None:
    builder.store(value, _place(builder, pointer, index, value.type), align=4)


def multiply_add(builder: Any, factor: Any, value: Any, total: Any) -> Any:
    """total + factor * value, as one FMA where the CPU has it."""
    return builder.fadd(total, builder.fmul(factor, value, flags=("contract",)), flags=("contract",))


def array_data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The data pointer of a Numba array."""
    return context.make_array(array_type)(context, builder, array).data


def _place(builder: Any, pointer: Any, index: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer())
