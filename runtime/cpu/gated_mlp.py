"""`gated_mlp` on the CPU; `zigpass.runtime.reference` says what it computes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import ops
from ..errors import ZigpassError
from ..reference import ACTIVATIONS, is_decode
from .activations import ACTIVATION_CODES
from .arguments import address_and_size, checked_plan, checked_weight
from .floats import DTYPE_CODES, FLOAT32
from .mlp import mlp
from .record import pack_records, weight_plan
from .rows import linear_rows


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
    up_plan = checked_plan(x, up, up_bias, threshold_in, up_layout)
    gate_plan = checked_plan(x, gate, gate_bias, threshold_in, gate_layout) if gate else None
    down_plan = weight_plan(down_layout, *[tensor.dtype for tensor in down])
    if (
        activation not in ACTIVATION_CODES
        or down_plan.k != up_plan.n
        or (gate_plan is not None and gate_plan.n != up_plan.n)
    ):
        layouts = (gate_layout, up_layout, down_layout)
        ops.check_mlp(x, gate, up, down, threshold_in, threshold_mid, *layouts, activation)
    if gate_plan is None and gate_bias is not None:
        raise ZigpassError("gated_mlp got a gate bias without a gate")
    checked_weight(down_plan, down, down_bias, threshold_mid)

    if not is_decode(x):
        rows = x.float()
        middle = linear_rows(rows, up, up_bias, up_plan)
        act = ACTIVATIONS[activation]
        middle = act(middle) if gate_plan is None else act(linear_rows(rows, gate, gate_bias, gate_plan)).mul_(middle)
        return linear_rows(middle, down, down_bias, down_plan).to(x.dtype)

    row = x.contiguous()
    out = x.new_empty((*x.shape[:-1], down_plan.n))
    dtype = DTYPE_CODES[x.dtype]
    parts = [up_plan.record(up, up_bias, 0, FLOAT32), down_plan.record(down, down_bias, out.data_ptr(), dtype)]
    if gate_plan is not None:
        parts.append(gate_plan.record(gate, gate_bias, 0, FLOAT32))
    records = pack_records(parts)
    mlp(
        row.data_ptr(),
        dtype,
        up_plan.k,
        *address_and_size(threshold_in),
        *address_and_size(threshold_mid),
        records.buffer_info()[0],
        gate_plan is not None,
        ACTIVATION_CODES[activation],
    )
    return out
