"""Reading memory that torch owns, from compiled code.

Kernels get tensors as integer addresses. The caller holds the tensors for the whole call, so the addresses stay valid.
Scratch that a kernel allocates itself is always an array, never a bare address: Numba frees an array after its last
use, and an address does not count as one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import jit

LINE = 64
"""Bytes of a cache line."""
SPARE = LINE // 4
"""float32 entries to add to an array whose address is going to be `aligned`."""
_INT8_POINTER = ir.IntType(8).as_pointer()
_INT32 = ir.IntType(32)


def _pointer_to(element: types.Type) -> Any:
    """An intrinsic that reads an integer address as a pointer to `element`."""

    def pointer(typing_context: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), build

    return intrinsic(pointer)


float32_pointer = _pointer_to(types.float32)
uint32_pointer = _pointer_to(types.uint32)
uint16_pointer = _pointer_to(types.uint16)
uint8_pointer = _pointer_to(types.uint8)
int32_pointer = _pointer_to(types.int32)
int64_pointer = _pointer_to(types.int64)
uint64_pointer = _pointer_to(types.uint64)


def _offset(element: types.Type) -> Any:
    """An intrinsic: the pointer `index` elements further on."""

    def offset(typing_context: Any, pointer: Any, index: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.gep(args[0], [args[1]])

        return types.CPointer(element)(types.CPointer(element), types.uint64), build

    return intrinsic(offset)


offset_float32 = _offset(types.float32)
offset_uint8 = _offset(types.uint8)
offset_uint16 = _offset(types.uint16)
offset_uint32 = _offset(types.uint32)


@intrinsic  # type: ignore[untyped-decorator]
def address_of(typing_context: Any, array: Any) -> Any:
    """The address of an array's data. The array must be named again, in `keep`, after the address was last used."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), build


@jit
def aligned(address: int) -> int:
    """An address rounded up to a cache line; the array must have `LINE` bytes to spare."""
    rounded: int = (address + LINE - 1) // LINE * LINE
    return rounded


@intrinsic  # type: ignore[untyped-decorator]
def keep(typing_context: Any, array: Any) -> Any:
    """Keep an array alive up to here."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), build


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, pointer: Any, index: Any) -> Any:
    """`pointer[index]` of memory that the kernel only reads: inputs and weights."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]]))

    return pointer.dtype(pointer, types.uint64), build


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, pointer: Any, index: Any, value: Any) -> Any:
    """`pointer[index] = value`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.uint64, pointer.dtype), build


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, pointer: Any, index: Any) -> Any:
    """Ask for the cache line of `pointer[index]`; a hint that never faults."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch_line(builder, builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.uint64), build


def prefetch_line(builder: Any, pointer: Any, locality: int = 2) -> None:
    """Emit a prefetch for reading, into the second-level cache (locality 2) or the first (3)."""
    kind = ir.FunctionType(ir.VoidType(), [_INT8_POINTER, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, _INT8_POINTER), _INT32(0), _INT32(locality), _INT32(1)])


def _reinterpret(source: types.Type, target: types.Type) -> Any:
    def bits(typing_context: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(signature.return_type))

        return target(source), build

    return intrinsic(bits)


float_of_bits = _reinterpret(types.uint32, types.float32)
bits_of_float = _reinterpret(types.float32, types.uint32)
