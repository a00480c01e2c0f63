"""What onnxruntime calls when a zigpass node runs: compiled, without Python and without the GIL.

A *kernel* of onnxruntime is the address of a row of int64 with the fields below. One row of x, or a few, go straight to
the kernels of `zigpass.runtime.cpu`; the first call, which packs the weights, and many rows call back into Python.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numba import types, uint64
from numba.core.ccallback import CFunc

from zigpass.runtime.cpu.cache import KernelCache
from zigpass.runtime.cpu.call import (
    HEADER_FIELDS,
    NUM_THRESHOLDS_IN,
    NUM_THRESHOLDS_MID,
    ROWS,
    THRESHOLD_IN,
    THRESHOLD_MID,
    X,
)
from zigpass.runtime.cpu.memory import address_of, int64_pointer, keep, load
from zigpass.runtime.cpu.record import OUT

from .abi import MOST_DIMENSIONS
from .calls import call, call_kernel

READY: Final = 0
"""1 when the weights are packed and everything from `KERNEL` on is set."""
ID: Final = 1
PREPARE: Final = 2
"""Address of a callback (id, context) -> status that makes the kernel ready."""
DENSE: Final = 3
"""Address of a callback (id, x, rows, y) -> status for many rows."""
FAILED: Final = 4
"""Address of a callback (id, code) -> status that says what is wrong."""
IS_MLP: Final = 5
NUM_INPUTS: Final = 6
"""K of x, and of the middle of an MLP in the field after it."""
NUM_OUTPUTS: Final = 8
GET_INPUT: Final = 9
GET_OUTPUT: Final = 10
GET_DATA: Final = 11
GET_TYPE_AND_SHAPE: Final = 12
RELEASE_TYPE_AND_SHAPE: Final = 13
GET_DIMENSIONS_COUNT: Final = 14
GET_DIMENSIONS: Final = 15
GET_ELEMENT_COUNT: Final = 16
KERNEL: Final = 17
"""Address of the kernel, `project` or `mlp`."""
MOST_ROWS: Final = 18
CALL: Final = 19
"""Address of the call (`zigpass.runtime.cpu.call`) of CALL_FIELDS int64, but for X, its rows, thresholds and Y."""
CALL_FIELDS: Final = 20
FIELDS: Final = 21

WRONG_SHAPE: Final = 1
WRONG_THRESHOLD: Final = 2
KERNEL_RAISED: Final = 3


def _compute(kernel: int, context: int) -> Any:
    """`KernelComputeV2`: 0, or the address of an `OrtStatus`."""
    state = int64_pointer(kernel)
    identity = load(state, uint64(ID))
    if load(state, uint64(READY)) == 0:
        status = call(load(state, uint64(PREPARE)), (identity, context))
        if status != 0:
            return status
    places = np.zeros(4 + MOST_DIMENSIONS, np.int64)
    value, info, result = address_of(places), address_of(places) + 8, address_of(places) + 16
    dimensions = address_of(places) + 32
    status = call(load(state, uint64(GET_INPUT)), (context, 0, value))
    if status == 0:
        status = call(load(state, uint64(GET_TYPE_AND_SHAPE)), (places[0], info))
    if status != 0:
        return status
    call(load(state, uint64(GET_DIMENSIONS_COUNT)), (places[1], result))
    rank = places[2]
    if rank < 1 or rank > MOST_DIMENSIONS:
        call(load(state, uint64(RELEASE_TYPE_AND_SHAPE)), (places[1],))
        return call(load(state, uint64(FAILED)), (identity, WRONG_SHAPE))
    call(load(state, uint64(GET_DIMENSIONS)), (places[1], dimensions, rank))
    call(load(state, uint64(RELEASE_TYPE_AND_SHAPE)), (places[1],))
    call(load(state, uint64(GET_DATA)), (places[0], value))
    x = places[0]
    rows = np.int64(1)
    for i in range(rank - 1):
        rows *= places[4 + i]
    k = load(state, uint64(NUM_INPUTS))
    if places[3 + rank] != k:
        return call(load(state, uint64(FAILED)), (identity, WRONG_SHAPE))
    places[3 + rank] = load(state, uint64(NUM_OUTPUTS))
    status = call(load(state, uint64(GET_OUTPUT)), (context, 0, dimensions, rank, result))
    if status != 0 or rows == 0:
        return status
    call(load(state, uint64(GET_DATA)), (places[2], result))
    y = places[2]
    if rows > load(state, uint64(MOST_ROWS)):
        return call(load(state, uint64(DENSE)), (identity, x, rows, y))

    is_mlp = load(state, uint64(IS_MLP))
    # Address and number of entries of one or two thresholds; none apply to several rows.
    thresholds = np.zeros(4, np.int64)
    if rows == 1:
        for i in range(1 + is_mlp):
            call(load(state, uint64(GET_INPUT)), (context, 1 + i, value))
            call(load(state, uint64(GET_TYPE_AND_SHAPE)), (places[0], info))
            call(load(state, uint64(GET_ELEMENT_COUNT)), (places[1], result))
            call(load(state, uint64(RELEASE_TYPE_AND_SHAPE)), (places[1],))
            call(load(state, uint64(GET_DATA)), (places[0], value))
            if places[2] != 1 and places[2] != load(state, uint64(NUM_INPUTS + i)):
                return call(load(state, uint64(FAILED)), (identity, WRONG_THRESHOLD))
            thresholds[2 * i] = places[0]
            thresholds[2 * i + 1] = places[2]
    # Nodes may run at the same time, each with addresses of its own for X and Y.
    copied = np.empty(load(state, uint64(CALL_FIELDS)), np.int64)
    template = int64_pointer(load(state, uint64(CALL)))
    for i in range(uint64(len(copied))):
        copied[i] = load(template, i)
    copied[X] = x
    copied[ROWS] = rows
    copied[THRESHOLD_IN], copied[NUM_THRESHOLDS_IN] = thresholds[0], thresholds[1]
    copied[THRESHOLD_MID], copied[NUM_THRESHOLDS_MID] = thresholds[2], thresholds[3]
    copied[HEADER_FIELDS + OUT] = y
    raised = call_kernel(load(state, uint64(KERNEL)), (address_of(copied),))
    keep(copied)
    keep(places)
    if raised != 0:
        return call(load(state, uint64(FAILED)), (identity, KERNEL_RAISED))
    return 0


@functools.cache
def compute_function() -> Any:
    """`_compute` as a C function; compiled, or read from disk, at the first call. Its `address` is what ORT takes."""
    function: Any = CFunc(_compute, ((types.int64, types.int64), types.int64), {}, {"nogil": True})
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in ("compute.py", "calls.py", "abi.py"))
    function._cache = KernelCache(f"ort_compute_{hashlib.sha256(sources).hexdigest()[:12]}")
    function.compile()
    return function
