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
from .floats import FLOAT32
from .parallel import team
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
    up_bound = bind(up, up_bias, up_layout)
    gate_bound = bind(gate, gate_bias, gate_layout) if gate else None
    down_bound = bind(down, down_bias, down_layout)
    up_plan, down_plan = up_bound.plan, down_bound.plan
    gate_plan = None if gate_bound is None else gate_bound.plan
    dtype = checked_input(x, up_plan)
    code = ACTIVATION_CODES.get(activation, -1)
    if code < 0 or down_plan.k != up_plan.n or (gate_plan and (gate_plan.n, gate_plan.k) != (up_plan.n, up_plan.k)):
        layouts = (gate_layout, up_layout, down_layout)
        ops.check_mlp(x, gate, up, down, threshold_in, threshold_mid, *layouts, activation)
    if gate_plan is None and gate_bias is not None:
        raise ZigpassError("gated_mlp got a gate bias without a gate")
    threshold_in_at, threshold_mid_at = (
        checked_threshold(threshold_in, up_plan),
        checked_threshold(threshold_mid, down_plan),
    )

    num_rows = x.numel() // up_plan.k
    variant = current_variant()
    if not 1 <= num_rows <= variant.most_rows:
        rows = x.float()
        middle = linear_rows(rows, up, up_bias, up_plan)
        act = ACTIVATIONS[activation]
        middle = act(middle) if gate_plan is None else act(linear_rows(rows, gate, gate_bias, gate_plan)).mul_(middle)
        return linear_rows(middle, down, down_bias, down_plan).to(x.dtype)

    if num_rows > 1:
        threshold_in_at = threshold_mid_at = (0, 0)
    row = x.contiguous()
    out = x.new_empty((*x.shape[:-1], down_plan.n))
    records = down_bound.record(out.data_ptr(), dtype)
    records += up_bound.record(0, FLOAT32)
    codes = up_plan.num_codes + down_plan.num_codes
    if gate_bound is not None:
        records += gate_bound.record(0, FLOAT32)
        codes += up_plan.num_codes
    variant.mlp(
        row.data_ptr(), dtype, num_rows, up_plan.k, *threshold_in_at, *threshold_mid_at, records.buffer_info()[0],
        gate_bound is not None, code, variant.digits(), *team(codes * num_rows),
    )  # fmt: skip
    return out
