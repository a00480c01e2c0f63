"""The kernel of `gated_mlp`: from x to y without leaving compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import uint64

from .activations import activate
from .call import (
    ACTIVATION,
    DIGITS,
    HEADER_FIELDS,
    NUM_RECORDS,
    NUM_THRESHOLDS_IN,
    NUM_THRESHOLDS_MID,
    TEAM,
    THREADS,
    THRESHOLD_IN,
    THRESHOLD_MID,
    X_DTYPE,
    X,
)
from .call import ROWS as CALL_ROWS
from .compile import Kernel, jit_for, kernel
from .exact import exact_gemv
from .floats import widen
from .inputs import EXACT, ROWS, fill_inputs, inputs_size, reusable
from .memory import address_of, float32_pointer, int64_pointer, keep, load, store
from .parallel import run_team, take_next
from .project import (
    BLOCKS,
    JOB_ACTIVATION,
    JOB_FIELDS,
    MIDDLE,
    NEXT,
    PIECES,
    RECORD_COUNT,
    RECORDS,
    add_bias,
    make_project_work,
    piece_rows,
)
from .record import RECORD_FIELDS, K, N

_RECORD_BYTES = RECORD_FIELDS * 8


def make_mlp(name: str, gemv: Callable[..., Any]) -> Kernel:
    """The kernel for one variant of `gemv`."""
    middle_work, project_work = _make_middle_work(name, gemv), make_project_work(name, gemv)

    def mlp(call_address: int) -> None:
        """Write W_down (act(W_gate x) * (W_up x)) of each row to the address in down's record.

        The weights of the call (call.py) are down, up and, where there is one, the gate; without a gate the activation
        applies to up.
        """
        call = int64_pointer(call_address)
        records, has_gate = call_address + 8 * HEADER_FIELDS, load(call, uint64(NUM_RECORDS)) > 2
        rows, digits, threads = load(call, uint64(CALL_ROWS)), load(call, uint64(DIGITS)), load(call, uint64(THREADS))
        threshold_in, num_thresholds_in = load(call, uint64(THRESHOLD_IN)), load(call, uint64(NUM_THRESHOLDS_IN))
        threshold_mid, num_thresholds_mid = load(call, uint64(THRESHOLD_MID)), load(call, uint64(NUM_THRESHOLDS_MID))
        team = load(call, uint64(TEAM))
        down = int64_pointer(records)
        up = int64_pointer(records + _RECORD_BYTES)
        gate = int64_pointer(records + 2 * _RECORD_BYTES)
        count = load(up, uint64(K))
        values = np.empty(rows * count, np.float32)
        widen(load(call, uint64(X)), 0, rows * count, load(call, uint64(X_DTYPE)), values)
        up_size = inputs_size(up, rows, digits)
        arena = np.empty((up_size + (inputs_size(gate, rows, digits) if has_gate else 0)) // 8, np.int64)
        blocks = np.empty(2, np.int64)
        blocks[0] = address_of(arena)
        blocks[1] = blocks[0]
        fill_inputs(up, values, rows, threshold_in, num_thresholds_in, digits, blocks[0])
        if has_gate and not reusable(gate, up):
            blocks[1] = blocks[0] + up_size
            fill_inputs(gate, values, rows, threshold_in, num_thresholds_in, digits, blocks[1])
        middle = np.empty(rows * load(up, uint64(N)), np.float32)
        job = np.zeros(JOB_FIELDS, np.int64)
        job[PIECES] = threads
        job[RECORDS] = records + _RECORD_BYTES
        job[RECORD_COUNT] = 2 if has_gate else 1
        job[BLOCKS] = address_of(blocks)
        job[JOB_ACTIVATION] = load(call, uint64(ACTIVATION))
        job[MIDDLE] = address_of(middle)
        if threads > 1:
            run_team(middle_work, address_of(job), team, threads)
        else:
            middle_work(address_of(job))

        down_arena = np.empty(inputs_size(down, rows, digits) // 8, np.int64)
        fill_inputs(down, middle, rows, threshold_mid, num_thresholds_mid, digits, address_of(down_arena))
        blocks[0] = address_of(down_arena)
        job[NEXT] = 0
        job[RECORDS] = records
        job[RECORD_COUNT] = 1
        if threads > 1:
            run_team(project_work, address_of(job), team, threads)
        else:
            project_work(address_of(job))
        keep(job)
        keep(blocks)
        keep(arena)
        keep(down_arena)
        keep(middle)

    return kernel(mlp, f"mlp_{name}")


def _make_middle_work(name: str, gemv: Callable[..., Any]) -> Callable[..., Any]:
    """What every thread does for the first half: rows of the middle, act(W_gate x) * (W_up x)."""

    @jit_for(name)
    def weigh(record: int, inputs: int, first_row: int, end_row: int, count: int, out: np.ndarray) -> None:
        if load(inputs, uint64(EXACT)) != 0:
            exact_gemv(record, inputs, first_row, end_row, out)
        else:
            gemv(record, inputs, first_row, end_row, out)
        for r in range(load(inputs, uint64(ROWS))):
            add_bias(record, first_row, count, r * (end_row - first_row), out)

    @jit_for(name)
    def middle_work(job_address: int) -> None:
        job = int64_pointer(job_address)
        pieces = load(job, uint64(PIECES))
        up = int64_pointer(load(job, uint64(RECORDS)))
        gate = int64_pointer(load(job, uint64(RECORDS)) + _RECORD_BYTES)
        blocks = int64_pointer(load(job, uint64(BLOCKS)))
        has_gate = load(job, uint64(RECORD_COUNT)) > 1
        middle = float32_pointer(load(job, uint64(MIDDLE)))
        n = load(up, uint64(N))
        while True:
            piece = take_next(job)
            if piece >= pieces:
                break
            first_row, end_row = piece_rows(up, piece, pieces)
            if first_row >= end_row:
                continue
            inputs = int64_pointer(load(blocks, uint64(0)))
            rows, width = load(inputs, uint64(ROWS)), end_row - first_row
            count = min(end_row, n) - first_row
            values = np.empty(rows * width, np.float32)
            weigh(up, inputs, first_row, end_row, count, values)
            if has_gate:
                gated = np.empty(rows * width, np.float32)
                weigh(gate, int64_pointer(load(blocks, uint64(1))), first_row, end_row, count, gated)
                activate(gated, rows * width, load(job, uint64(JOB_ACTIVATION)))
                for i in range(uint64(rows * width)):
                    values[i] = gated[i] * values[i]
            else:
                activate(values, rows * width, load(job, uint64(JOB_ACTIVATION)))
            for r in range(rows):
                target, source = uint64(r * n + first_row), uint64(r * width)
                for i in range(uint64(count)):
                    store(middle, target + i, values[source + i])

    return middle_work
