"""The kernel of `linear` and `qkv`: one list of active entries, then every weight that reads it."""

from __future__ import annotations

import numpy as np
from numba import uint64

from ..layout import BLOCK_ROWS
from .compile import jit, kernel
from .floats import narrow, widen
from .gemv import gemv
from .memory import int64_pointer, load
from .predict import list_active
from .record import BIAS, BIAS_DTYPE, OUT, OUT_DTYPE, PERM, RECORD_FIELDS, N


@kernel
def project(
    x: int, x_dtype: int, count: int, threshold: int, num_thresholds: int, records: int, num_records: int
) -> None:
    """Write W x (+ bias) of one row x for each of `num_records` weights to the address in its record.

    Args:
        x: address of `count` contiguous values of dtype code `x_dtype`.
        threshold: address of `num_thresholds` float32, see `list_active`.
        records: address of the records, one after the other.
    """
    values = np.empty(count, np.float32)
    widen(x, 0, count, x_dtype, values)
    active_index = np.empty(count + 1, np.uint64)
    active_value = np.empty(count + 1, np.float32)
    num_active = np.int64(0)
    listed = False  # whether the list is the one in the order of x, which weights without perm share
    for i in range(num_records):
        record = int64_pointer(records + i * RECORD_FIELDS * 8)
        perm = load(record, uint64(PERM))
        if perm != 0 or not listed:
            num_active = list_active(values, count, threshold, num_thresholds, perm, active_index, active_value)
            listed = perm == 0
        n = load(record, uint64(N))
        out = np.empty((n + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS, np.float32)
        gemv(record, active_index, active_value, num_active, out)
        add_bias(record, out)
        narrow(out, n, load(record, uint64(OUT_DTYPE)), load(record, uint64(OUT)))


@jit
def add_bias(record: int, out: np.ndarray) -> None:
    """out[0:N] += the record's bias, if it has one."""
    address = load(record, uint64(BIAS))
    if address != 0:
        n = load(record, uint64(N))
        bias = np.empty(n, np.float32)
        widen(address, 0, n, load(record, uint64(BIAS_DTYPE)), bias)
        for i in range(uint64(n)):
            out[i] += bias[i]
