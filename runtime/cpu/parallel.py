"""Several threads for one kernel: the team of threads that torch's own operators use.

torch runs its operators on OpenMP threads. A kernel asks the same OpenMP runtime for a team, so zigpass and torch share
one set of threads and never compete for cores; the number of threads is torch's. The work is cut into pieces of output
rows which the threads take one after the other; a row is computed in the same way whoever takes it, so results have the
same bits for every number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

logger = logging.getLogger("zigpass.runtime.cpu")

_POINTER = ir.IntType(8).as_pointer()
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)

LEAST_CODES = 1 << 20
"""Kernels of fewer codes use one thread. 576x1536 and 1536x576 (0.9 million codes), scales along the inputs, 50 %
active: one thread 37 and 42 us, two 40 and 44, dense 59 and 61 against 68 and 76; 4096x11008 gains by 1.7 to 1.9."""

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def team_starter() -> int:
    """Address of `GOMP_parallel` in the OpenMP runtime that torch has loaded; 0 where there is none.

    GNU's, Intel's and LLVM's runtimes have this function, except on Windows; there kernels use one thread.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        logger.info("no OpenMP runtime with GOMP_parallel is loaded: zigpass kernels use one thread")
        return 0
    address = ctypes.cast(function, ctypes.c_void_p).value
    return address or 0


def team(codes: int) -> tuple[int, int]:
    """`team_starter()` and the number of threads for a kernel that reads up to `codes` codes.

    The number is torch's, or 1 where a team cannot be had or would not pay. A forked child has none of its parent's
    OpenMP threads, and asking the runtime for them would wait forever.
    """
    if codes < LEAST_CODES or _forked:
        return 0, 1
    threads = torch.get_num_threads()
    starter = team_starter() if threads > 1 else 0
    return (starter, threads) if starter else (0, 1)


@intrinsic  # type: ignore[untyped-decorator]
def run_team(typing_context: Any, worker: Any, job: Any, starter: Any, threads: Any) -> Any:
    """Call worker(job) once in each of `threads` threads and wait for all of them.

    Args:
        worker: a jit function of one int64 that cannot raise.
        job: int64 handed to every thread.
        starter: `team_starter()`.
    """
    signature = worker.get_call_type(typing_context, (types.int64,), {})
    compiled = worker.dispatcher.overloads[signature.args]

    def build(context: Any, builder: Any, team_signature: Any, args: Any) -> Any:
        _, job_value, starter_value, num = args
        context.active_code_library.add_linking_library(compiled.library)
        body_type = ir.FunctionType(ir.VoidType(), [_POINTER])
        body = ir.Function(builder.module, body_type, name=builder.module.get_unique_name("zigpass_team_body"))
        body.linkage = "internal"
        inner = ir.IRBuilder(body.append_basic_block("entry"))
        value = inner.ptrtoint(body.args[0], _INT64)
        context.call_internal_no_propagate(inner, compiled.fndesc, signature, [value])
        inner.ret_void()
        team = ir.FunctionType(ir.VoidType(), [body_type.as_pointer(), _POINTER, _INT32, _INT32])
        function = builder.inttoptr(starter_value, team.as_pointer())
        data = builder.inttoptr(job_value, _POINTER)
        builder.call(function, [body, data, builder.trunc(num, _INT32), _INT32(0)])
        return context.get_dummy_value()

    return types.void(worker, types.int64, types.int64, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def take_next(typing_context: Any, counter: Any) -> Any:
    """The value of the int64 at a pointer, which goes up by one: every thread gets another."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], _INT64(1), "monotonic")

    return types.int64(types.CPointer(types.int64)), build
