"""How the functions of this package are compiled.

`jit` marks a function that kernels call; `kernel` marks one that Python calls. Kernels have one fixed signature of
plain integers (addresses and sizes), so there is one compiled version of each, whatever the dtypes and layouts are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types

from .cache import KernelCache

F = TypeVar("F", bound=Callable[..., Any])

# "contract" lets a product and a sum become one FMA. Nothing that reorders sums is allowed: results are the same bits
# every run, and the exponential in activations.py relies on its rounding steps.
_OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": {"contract"}}


def jit(function: F) -> F:
    """Compile a function that kernels call; its code becomes part of theirs."""
    return cast(F, numba.njit(**_OPTIONS)(function))


def jit_for(variant: str) -> Callable[[F], F]:
    """As `jit`, for a function that is made once for each variant of the kernels.

    The variant becomes part of its name. Numba tells functions of one name apart by a number that starts again in every
    process, and the linker takes two of one name and number, from kernels that two processes left on disk, for the same
    function: one variant would run the code of another.
    """

    def named(function: F) -> F:
        function.__qualname__ = f"{function.__qualname__}_{variant}"
        return jit(function)

    return named


def target_features() -> frozenset[str]:
    """Features of the CPU that kernels are compiled for (Numba's `NUMBA_CPU_FEATURES` can restrict them)."""
    from numba.core.registry import cpu_target

    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(feature[1:] for feature in features.split(",") if feature.startswith("+"))


def target_cpu() -> str:
    """LLVM's name of the CPU that kernels are compiled for, as "znver4" (Numba's `NUMBA_CPU_NAME` can change it)."""
    from numba.core.registry import cpu_target

    name: str = cpu_target.target_context.codegen().magic_tuple()[1]
    return name


class Kernel:
    """A compiled function that Python calls with `arity` integers; compiled, or read from disk, at its first call."""

    def __init__(self, function: Callable[..., None], arity: int, name: str) -> None:
        function.__qualname__ = name  # see jit_for
        self._dispatcher = numba.njit(**_OPTIONS)(function)
        self._dispatcher._cache = KernelCache(name)
        self._signature = types.void(*[types.int64] * arity)
        self._entry: Callable[..., None] | None = None
        self.__name__ = name
        self.__doc__ = function.__doc__

    def __call__(self, *args: int) -> None:
        entry = self._entry
        if entry is None:
            # Not through the dispatcher, which would compile another version for a bool or a NumPy integer.
            entry = self._entry = cast(Callable[..., None], self._dispatcher.compile(self._signature))
        entry(*args)

    @property
    def address(self) -> int:
        """Where the compiled function is, in Numba's calling convention (`memory.call_kernel`)."""
        if self._entry is None:
            self._entry = cast(Callable[..., None], self._dispatcher.compile(self._signature))
        compiled = self._dispatcher.overloads[self._signature.args]
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def kernel(function: Callable[..., None], name: str | None = None) -> Kernel:
    """Make a `Kernel` of a function whose parameters are all integers; kernels on disk are told apart by `name`."""
    return Kernel(function, function.__code__.co_argcount, name or function.__name__)
