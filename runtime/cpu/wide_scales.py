"""Scales of one block of 128 rows, in the vector registers that made its sums: read, widened to float32 and applied.

Half floats are widened by the CPU here, in one instruction; the integer arithmetic of floats.py, which every CPU can
run, made 4096x11008 a third slower. The instruction ignores flush-to-zero modes, so subnormals count in both.

Reordering the sums, widening and applying happen in one go. As three steps through memory they took 0.6 ns per row and
group on a Zen 4, as much as the products with thirty columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import jit_for
from .dot_tile import Tile
from .floats import BFLOAT16, FLOAT16, FLOAT32, UINT8
from .vectors import INT32

_INT64 = ir.IntType(64)
_ELEMENTS = {FLOAT16: ir.HalfType(), BFLOAT16: ir.IntType(16), FLOAT32: ir.FloatType(), UINT8: ir.IntType(8)}
_BYTES = {FLOAT16: 2, BFLOAT16: 2, FLOAT32: 4, UINT8: 1}
_AT_ONCE = 4


def _widen(builder: Any, dtype: int, address: Any, place: Any, floats: Any) -> Any:
    """The floats of `dtype` from element `place` on of what lies at an integer address, as float32."""
    kind = ir.VectorType(_ELEMENTS[dtype], floats.count)
    at = builder.add(address, builder.mul(place, _INT64(_BYTES[dtype])))
    value = builder.load(builder.inttoptr(at, kind.as_pointer()), align=1)
    words = ir.VectorType(INT32, floats.count)
    if dtype == FLOAT16:
        return builder.fpext(value, floats)
    if dtype == BFLOAT16:
        return builder.bitcast(builder.shl(builder.zext(value, words), ir.Constant(words, [16] * floats.count)), floats)
    if dtype == UINT8:
        return builder.sitofp(builder.zext(value, words), floats)
    return value


def _widened(builder: Any, dtypes: tuple[int, ...], dtype: Any, read: Callable[[int], list[Any]]) -> list[Any]:
    """What `read` emits for the one of `dtypes` that `dtype` names when the code runs; the last one for any other."""
    end = builder.append_basic_block("widened")
    found = []
    for candidate in dtypes[:-1]:
        here, other = builder.append_basic_block("this"), builder.append_basic_block("other")
        builder.cbranch(builder.icmp_unsigned("==", dtype, _INT64(candidate)), here, other)
        builder.position_at_end(here)
        found.append((read(candidate), builder.block))
        builder.branch(end)
        builder.position_at_end(other)
    found.append((read(dtypes[-1]), builder.block))
    builder.branch(end)
    builder.position_at_end(end)
    values = []
    for i, first in enumerate(found[0][0]):
        phi = builder.phi(first.type)
        for candidates, block in found:
            phi.add_incoming(candidates[i], block)
        values.append(phi)
    return values


def _applier(tile: Tile) -> Any:
    """An intrinsic, see `apply_scales`."""

    def apply_block(
        typing_context: Any,
        sums: Any,
        scale: Any,
        scale_dtype: Any,
        zero: Any,
        zero_dtype: Any,
        start: Any,
        adds_zero: Any,
        total: Any,
        out: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            sums_at, scale_at, scale_kind, zero_at, zero_kind, first, add, one, out_at = args
            floats = tile.floats
            splat = builder.insert_element(ir.Constant(floats, ir.Undefined), one, INT32(0))
            splat = builder.shuffle_vector(splat, splat, ir.Constant(tile.words, [0] * tile.lanes))
            add = builder.icmp_unsigned("!=", add, _INT64(0))
            rows = tile.in_row_order(builder, sums_at)
            for some in (rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE)):

                def read(dtype: int, address: Any, some: Any = some) -> list[Any]:
                    places = [builder.add(first, _INT64(row)) for row, _ in some]
                    return [_widen(builder, dtype, address, place, floats) for place in places]

                scales = _widened(builder, (FLOAT16, BFLOAT16, FLOAT32), scale_kind, lambda d: read(d, scale_at))
                zeros = _widened(builder, (UINT8, FLOAT16, BFLOAT16, FLOAT32), zero_kind, lambda d: read(d, zero_at))
                for (row, values), s, z in zip(some, scales, zeros, strict=True):
                    pointer = builder.bitcast(builder.gep(out_at, [_INT64(row)]), floats.as_pointer())
                    old = builder.load(pointer, align=4)
                    builder.store(_add_group(builder, old, values, s, z, splat, add), pointer, align=4)
            return context.get_dummy_value()

        floats, size = types.CPointer(types.float32), types.int64
        return types.void(floats, size, size, size, size, size, size, types.float32, floats), build

    return intrinsic(apply_block)


def _add_group(builder: Any, old: Any, sums: Any, scale: Any, zero: Any, total: Any, add: Any) -> Any:
    """old + scale * (sums - zero * total), or old + (scale * sums + zero * total) where `add`."""

    def multiply(a: Any, b: Any) -> Any:
        return builder.fmul(a, b, flags=("contract",))

    def plus(a: Any, b: Any) -> Any:
        return builder.fadd(a, b, flags=("contract",))

    shift = multiply(zero, total)
    added = builder.fadd(old, plus(multiply(scale, sums), shift))
    subtracted = plus(old, multiply(scale, builder.fsub(sums, shift, flags=("contract",))))
    return builder.select(add, added, subtracted)


def make_apply_scales(tile: type[Tile]) -> Callable[..., Any]:
    """`apply_scales` for a kind of CPU."""
    apply_2, apply_4, apply_8 = (_applier(tile(bits, 1)) for bits in (2, 4, 8))

    @jit_for(tile.name)
    def apply_scales(
        bits: int,
        sums: int,
        scale: int,
        scale_dtype: int,
        zero: int,
        zero_dtype: int,
        start: int,
        adds_zero: int,
        total: float,
        out: int,
    ) -> None:
        """out[0:128] += scale * (sums - zero * total), or scale * sums + zero * total when `adds_zero`.

        Args:
            sums: float32 pointer to the 128 sums that a pass left.
            scale, zero: addresses; entries start..start+128 of them belong to the block.
            total: the sum of the inputs of the group.
            out: float32 pointer, in the order of the rows.
        """
        if bits == 4:
            apply_4(sums, scale, scale_dtype, zero, zero_dtype, start, adds_zero, total, out)
        elif bits == 8:
            apply_8(sums, scale, scale_dtype, zero, zero_dtype, start, adds_zero, total, out)
        else:
            apply_2(sums, scale, scale_dtype, zero, zero_dtype, start, adds_zero, total, out)

    return apply_scales
