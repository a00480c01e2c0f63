"""Calling functions by their address, from compiled code."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()


@intrinsic  # type: ignore[untyped-decorator]
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call a C function whose arguments (a tuple) and result are pointers or integers of 64 bits."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = cgutils.unpack_tuple(builder, values[1])
        kind = ir.FunctionType(_INT64, [_INT64] * len(given))
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), given)

    return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), build


@intrinsic  # type: ignore[untyped-decorator]
def call_kernel(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call a `zigpass.runtime.cpu.compile.Kernel` at its `address`; the result is 0, or a status of Numba's.

    Numba's functions return a status, and write their result and a raised exception to their first two arguments.
    """

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = cgutils.unpack_tuple(builder, values[1])
        kind = ir.FunctionType(_INT32, [_POINTER.as_pointer(), _POINTER.as_pointer(), *[_INT64] * len(given)])
        places = [cgutils.alloca_once(builder, _POINTER) for _ in range(2)]
        status = builder.call(builder.inttoptr(values[0], kind.as_pointer()), [*places, *given])
        return builder.sext(status, _INT64)

    return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), build
