"""`gated_mlp` on the CPU; `zigpass.runtime.reference` says what it computes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import ops
from ..errors import ZigpassError
from ..reference import ACTIVATIONS
from .activations import ACTIVATION_CODES
from .arguments import checked_input, checked_threshold
from .bound import bind
from .call import (
    ACTIVATION,
    DIGITS,
    HEADER_FIELDS,
    NUM_THRESHOLDS_IN,
    NUM_THRESHOLDS_MID,
    ROWS,
    TEAM,
    THREADS,
    THRESHOLD_IN,
    THRESHOLD_MID,
    X_DTYPE,
    X,
)
from .parallel import team
from .record import OUT, OUT_DTYPE
from .results import new_results
from .rows import linear_rows
from .variants import current_variant


def gated_mlp(
    x: Tensor,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    down: Sequence[Tensor],
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    threshold_in: Tensor | None,
    threshold_mid: Tensor | None,
    gate_layout: str,
    up_layout: str,
    down_layout: str,
    activation: str,
) -> Tensor:
    """W_down (act(W_gate x) * (W_up x)), or W_down act(W_up x) when `gate` is empty.

    The middle stays float32. One row is one kernel call, sparse on both sides; more rows run dense.
    """
    weights, specs = [*down, *up, *gate], (down_layout, up_layout, gate_layout) if gate else (down_layout, up_layout)
    biases = None
    if down_bias is not None or up_bias is not None or gate_bias is not None:
        if gate_bias is not None and not gate:
            raise ZigpassError("gated_mlp got a gate bias without a gate")
        biases = (down_bias, up_bias, gate_bias)[: len(specs)]
    bound = bind(weights, biases, specs)
    down_plan, up_plan, *_ = bound.plans
    dtype = checked_input(x, up_plan)
    code = ACTIVATION_CODES.get(activation, -1)
    if code < 0 or not bound.fits_mlp:
        layouts = (gate_layout, up_layout, down_layout)
        ops.check_mlp(x, gate, up, down, threshold_in, threshold_mid, *layouts, activation)
        bound.fits_mlp = True
    in_at, in_size = checked_threshold(threshold_in, up_plan)
    mid_at, mid_size = checked_threshold(threshold_mid, down_plan)

    num_rows = x.numel() // up_plan.k
    variant = current_variant()
    if not 1 <= num_rows <= variant.most_rows:
        rows = x.float()
        middle = linear_rows(rows, up, up_bias, up_plan)
        act = ACTIVATIONS[activation]
        middle = act(linear_rows(rows, gate, gate_bias, bound.plans[2])).mul_(middle) if gate else act(middle)
        return linear_rows(middle, down, down_bias, down_plan).to(x.dtype)

    row = x.contiguous()
    (out,) = new_results(x, num_rows, [down_plan.n])
    call = bound.new_call()
    call[X] = row.data_ptr()
    call[X_DTYPE] = dtype
    call[ROWS] = num_rows
    if num_rows == 1:
        call[THRESHOLD_IN] = in_at
        call[NUM_THRESHOLDS_IN] = in_size
        call[THRESHOLD_MID] = mid_at
        call[NUM_THRESHOLDS_MID] = mid_size
    call[ACTIVATION] = code
    call[DIGITS] = variant.digits()
    call[TEAM], call[THREADS] = team(bound.num_codes * num_rows)
    call[HEADER_FIELDS + OUT] = out.data_ptr()
    call[HEADER_FIELDS + OUT_DTYPE] = dtype
    variant.mlp(call.buffer_info()[0])
    return out
