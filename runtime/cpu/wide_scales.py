"""Scales of one block of 128 rows, on 512-bit registers: read, widened to float32 and applied to sums.

Half floats are widened by the CPU here, in one instruction; the integer arithmetic of floats.py, which every CPU can
run, made 4096x11008 a third slower. The instruction ignores flush-to-zero modes, so subnormals count in both.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..layout import BLOCK_ROWS
from .compile import jit
from .floats import BFLOAT16, FLOAT16, FLOAT32
from .memory import float32_pointer, offset_float32, offset_uint8, offset_uint16, uint8_pointer, uint16_pointer
from .vectors import INT32

_LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_WORDS = ir.VectorType(INT32, _LANES)


def _load(builder: Any, pointer: Any, index: int, kind: Any) -> Any:
    place = builder.bitcast(builder.gep(pointer, [INT32(index)]), kind.as_pointer())
    return builder.load(place, align=1)


def _widener(element: types.Type, kind: str) -> Any:
    """An intrinsic: float32 out[0:128] = the 128 values at a pointer to `element`."""

    def widen_block(typing_context: Any, source: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for row in range(0, BLOCK_ROWS, _LANES):
                if kind == "float16":
                    value = builder.fpext(_load(builder, args[0], row, ir.VectorType(ir.HalfType(), _LANES)), _FLOATS)
                elif kind == "bfloat16":
                    half = _load(builder, args[0], row, ir.VectorType(ir.IntType(16), _LANES))
                    shifted = builder.shl(builder.zext(half, _WORDS), ir.Constant(_WORDS, [16] * _LANES))
                    value = builder.bitcast(shifted, _FLOATS)
                elif kind == "uint8":
                    byte = _load(builder, args[0], row, ir.VectorType(ir.IntType(8), _LANES))
                    value = builder.sitofp(builder.zext(byte, _WORDS), _FLOATS)
                else:
                    value = _load(builder, args[0], row, _FLOATS)
                place = builder.bitcast(builder.gep(args[1], [INT32(row)]), _FLOATS.as_pointer())
                builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(types.CPointer(element), types.CPointer(types.float32)), build

    return intrinsic(widen_block)


_widen_float16 = _widener(types.uint16, "float16")
_widen_bfloat16 = _widener(types.uint16, "bfloat16")
_widen_uint8 = _widener(types.uint8, "uint8")
_widen_float32 = _widener(types.float32, "float32")


@jit
def widen_block(address: int, start: int, dtype: int, out: int) -> None:
    """out[0:128] (float32 pointer) = the values start..start+128 at `address`, as float32."""
    if dtype == FLOAT16:
        _widen_float16(offset_uint16(uint16_pointer(address), start), out)
    elif dtype == BFLOAT16:
        _widen_bfloat16(offset_uint16(uint16_pointer(address), start), out)
    elif dtype == FLOAT32:
        _widen_float32(offset_float32(float32_pointer(address), start), out)
    else:
        _widen_uint8(offset_uint8(uint8_pointer(address), start), out)


def _applier(add_zero: bool) -> Any:
    """An intrinsic: out[0:128] += scale * (sums - zero * total), or scale * sums + zero * total; all float pointers."""

    def apply_block(typing_context: Any, scale: Any, zero: Any, total: Any, sums: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), args[2], INT32(0))
            total_splat = builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * _LANES))

            def multiply(a: Any, b: Any) -> Any:
                return builder.fmul(a, b, flags=("contract",))

            for row in range(0, BLOCK_ROWS, _LANES):
                s, z, value, old = (_load(builder, pointer, row, _FLOATS) for pointer in (*args[:2], args[3], args[4]))
                shift = multiply(z, total_splat)
                if add_zero:
                    increase = builder.fadd(multiply(s, value), shift, flags=("contract",))
                    new = builder.fadd(old, increase)
                else:
                    new = builder.fadd(
                        old, multiply(s, builder.fsub(value, shift, flags=("contract",))), flags=("contract",)
                    )
                place = builder.bitcast(builder.gep(args[4], [INT32(row)]), _FLOATS.as_pointer())
                builder.store(new, place, align=4)
            return context.get_dummy_value()

        floats = types.CPointer(types.float32)
        return types.void(floats, floats, types.float32, floats, floats), build

    return intrinsic(apply_block)


subtract_zero, add_zero = _applier(False), _applier(True)
