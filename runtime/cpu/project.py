"""The kernel of `linear` and `qkv`: one or a few rows of x, times every weight that reads them.

The kernel makes the inputs block of each weight, then one or more threads take pieces of output rows (parallel.py).
What the threads share is a *job*: a row of int64 with the fields below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import uint64

from ..layout import BLOCK_ROWS
from .call import (
    DIGITS,
    HEADER_FIELDS,
    NUM_RECORDS,
    NUM_THRESHOLDS_IN,
    TEAM,
    THREADS,
    THRESHOLD_IN,
    X_DTYPE,
    X,
)
from .call import ROWS as CALL_ROWS
from .compile import Kernel, jit, jit_for, kernel
from .exact import exact_gemv
from .floats import narrow, widen
from .inputs import EXACT, ROWS, fill_inputs, inputs_size, reusable
from .memory import address_of, int64_pointer, keep, load
from .parallel import run_team, take_next
from .record import BIAS, BIAS_DTYPE, OUT, OUT_DTYPE, RECORD_FIELDS, K, N

NEXT: Final = 0
"""The next piece that nobody has taken."""
PIECES: Final = 1
"""Pieces that every weight is cut into."""
RECORDS: Final = 2
"""Address of the records, one after the other."""
RECORD_COUNT: Final = 3
BLOCKS: Final = 4
"""Address of int64 [RECORD_COUNT], the address of each record's inputs block."""
JOB_ACTIVATION: Final = 5
MIDDLE: Final = 6
"""Address of float32, the middle of an MLP (mlp.py)."""
JOB_FIELDS: Final = 7


def make_project(name: str, gemv: Callable[..., Any]) -> Kernel:
    """The kernel for one variant of `gemv`."""
    work = make_project_work(name, gemv)

    def project(call_address: int) -> None:
        """Write W x (+ bias) of each row, for each of the weights of a call (call.py), to the address in its record."""
        call = int64_pointer(call_address)
        records, num_records = call_address + 8 * HEADER_FIELDS, load(call, uint64(NUM_RECORDS))
        rows, digits, threads = load(call, uint64(CALL_ROWS)), load(call, uint64(DIGITS)), load(call, uint64(THREADS))
        threshold, num_thresholds = load(call, uint64(THRESHOLD_IN)), load(call, uint64(NUM_THRESHOLDS_IN))
        count = load(int64_pointer(records), uint64(K))
        values = np.empty(rows * count, np.float32)
        widen(load(call, uint64(X)), 0, rows * count, load(call, uint64(X_DTYPE)), values)
        size = np.int64(0)
        for i in range(num_records):
            size += inputs_size(int64_pointer(records + i * RECORD_FIELDS * 8), rows, digits)
        arena = np.empty(size // 8, np.int64)
        blocks = np.empty(num_records, np.int64)
        address = address_of(arena)
        for i in range(num_records):
            record = int64_pointer(records + i * RECORD_FIELDS * 8)
            if i > 0 and reusable(record, int64_pointer(records + (i - 1) * RECORD_FIELDS * 8)):
                blocks[i] = blocks[i - 1]
            else:
                fill_inputs(record, values, rows, threshold, num_thresholds, digits, address)
                blocks[i] = address
                address += inputs_size(record, rows, digits)
        job = np.zeros(JOB_FIELDS, np.int64)
        job[PIECES] = threads
        job[RECORDS] = records
        job[RECORD_COUNT] = num_records
        job[BLOCKS] = address_of(blocks)
        if threads > 1:
            run_team(work, address_of(job), load(call, uint64(TEAM)), threads)
        else:
            work(address_of(job))
        keep(job)
        keep(blocks)
        keep(arena)

    return kernel(project, f"project_{name}")


def make_project_work(name: str, gemv: Callable[..., Any]) -> Callable[..., Any]:
    """What every thread does: take pieces of rows until none is left."""

    @jit_for(name)
    def project_work(job_address: int) -> None:
        job = int64_pointer(job_address)
        pieces = load(job, uint64(PIECES))
        while True:
            piece = take_next(job)
            if piece >= pieces * load(job, uint64(RECORD_COUNT)):
                break
            i = piece // pieces
            record = int64_pointer(load(job, uint64(RECORDS)) + i * RECORD_FIELDS * 8)
            inputs = int64_pointer(load(int64_pointer(load(job, uint64(BLOCKS))), uint64(i)))
            first_row, end_row = piece_rows(record, piece % pieces, pieces)
            if first_row < end_row:
                rows = load(inputs, uint64(ROWS))
                out = np.empty(rows * (end_row - first_row), np.float32)
                if load(inputs, uint64(EXACT)) != 0:
                    exact_gemv(record, inputs, first_row, end_row, out)
                else:
                    gemv(record, inputs, first_row, end_row, out)
                finish_rows(record, rows, first_row, end_row, out)

    return project_work


@jit
def piece_rows(record: int, piece: int, pieces: int) -> tuple[int, int]:
    """First and end row (padded) of one of the pieces that a weight is cut into."""
    blocks = (load(record, uint64(N)) + BLOCK_ROWS - 1) // BLOCK_ROWS
    return blocks * piece // pieces * BLOCK_ROWS, blocks * (piece + 1) // pieces * BLOCK_ROWS


@jit
def add_bias(record: int, first_row: int, count: int, start: int, out: np.ndarray) -> None:
    """out[start : start + count] += the bias of rows first_row..first_row + count, if there is one."""
    address = load(record, uint64(BIAS))
    if address != 0:
        bias = np.empty(count, np.float32)
        widen(address, first_row, count, load(record, uint64(BIAS_DTYPE)), bias)
        for i in range(uint64(count)):
            out[uint64(start) + i] += bias[i]


@jit
def finish_rows(record: int, rows: int, first_row: int, end_row: int, out: np.ndarray) -> None:
    """Add the bias to a piece and write it where the record says."""
    n, dtype = load(record, uint64(N)), load(record, uint64(OUT_DTYPE))
    count = min(end_row, n) - first_row
    for r in range(rows):
        start = r * (end_row - first_row)
        add_bias(record, first_row, count, start, out)
        narrow(out, start, count, dtype, load(record, uint64(OUT)), r * n + first_row)
