"""The kernel of `gated_mlp`: from x to y without leaving compiled code."""

from __future__ import annotations

import numpy as np
from numba import uint64

from ..layout import BLOCK_ROWS
from .activations import activate
from .compile import kernel
from .floats import narrow, widen
from .gemv import gemv
from .memory import int64_pointer, load
from .predict import list_active
from .project import add_bias
from .record import OUT, OUT_DTYPE, PERM, RECORD_FIELDS, N


@kernel
def mlp(
    x: int,
    x_dtype: int,
    count: int,
    threshold_in: int,
    num_thresholds_in: int,
    threshold_mid: int,
    num_thresholds_mid: int,
    records: int,
    has_gate: int,
    activation: int,
) -> None:
    """Write W_down (act(W_gate x) * (W_up x)) of one row x to the address in down's record.

    Args:
        x: address of `count` contiguous values of dtype code `x_dtype`.
        threshold_in, threshold_mid: addresses of float32, see `list_active`.
        records: address of the records of up, down and, when `has_gate`, gate.
        activation: a value of `ACTIVATION_CODES`; without a gate it applies to up.
    """
    up = int64_pointer(records)
    down = int64_pointer(records + RECORD_FIELDS * 8)
    gate = int64_pointer(records + 2 * RECORD_FIELDS * 8)
    middle_n = load(up, uint64(N))
    n = load(down, uint64(N))
    padded_middle = (middle_n + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS
    longest = max(count, middle_n) + 1

    values = np.empty(count, np.float32)
    widen(x, 0, count, x_dtype, values)
    active_index = np.empty(longest, np.uint64)
    active_value = np.empty(longest, np.float32)
    perm = load(up, uint64(PERM))
    num_active = list_active(values, count, threshold_in, num_thresholds_in, perm, active_index, active_value)

    middle = np.empty(padded_middle, np.float32)
    gemv(up, active_index, active_value, num_active, middle)
    add_bias(up, middle)
    if has_gate:
        gated = np.empty(padded_middle, np.float32)
        gate_perm = load(gate, uint64(PERM))
        if perm != 0 or gate_perm != 0:
            num_active = list_active(
                values, count, threshold_in, num_thresholds_in, gate_perm, active_index, active_value
            )
        gemv(gate, active_index, active_value, num_active, gated)
        add_bias(gate, gated)
        activate(gated, middle_n, activation)
        for i in range(uint64(middle_n)):
            middle[i] = gated[i] * middle[i]
    else:
        activate(middle, middle_n, activation)

    down_perm = load(down, uint64(PERM))
    num_active = list_active(middle, middle_n, threshold_mid, num_thresholds_mid, down_perm, active_index, active_value)
    out = np.empty((n + BLOCK_ROWS - 1) // BLOCK_ROWS * BLOCK_ROWS, np.float32)
    gemv(down, active_index, active_value, num_active, out)
    add_bias(down, out)
    narrow(out, n, load(down, uint64(OUT_DTYPE)), load(down, uint64(OUT)))
