"""`linear` and `qkv` on the CPU; `zigpass.runtime.reference` says what they compute."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import ZigpassError
from ..reference import is_decode, split_weights
from .arguments import address_and_size, checked_plan
from .floats import DTYPE_CODES
from .project import project
from .record import pack_records
from .rows import linear_rows


def linear(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str) -> Tensor:
    """y = W x + bias; one row reads only the columns of active entries, more rows run dense.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        weight: packed tensors of W [N, K] in the order of `PackedWeight.tensors`.
        bias: [N] or None.
        threshold: float32 [1] or [K], or None for dense.
        layout: `Layout.spec` of the weight.

    Returns:
        [..., N] in x's dtype.
    """
    plan = checked_plan(x, weight, bias, threshold, layout)
    if not is_decode(x):
        return linear_rows(x.float(), weight, bias, plan).to(x.dtype)
    row = x.contiguous()
    out = x.new_empty((*x.shape[:-1], plan.n))
    dtype = DTYPE_CODES[x.dtype]
    records = pack_records([plan.record(weight, bias, out.data_ptr(), dtype)])
    project(row.data_ptr(), dtype, plan.k, *address_and_size(threshold), records.buffer_info()[0], 1)
    return out


def qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[str],
) -> list[Tensor]:
    """Several weights that share the input x and its threshold; one result per layout.

    Args:
        weights: the packed tensors of all weights, one after the other.
        biases: one entry per weight.
    """
    parts = split_weights(weights, layouts)
    if len(biases) != len(layouts) or sum(map(len, parts)) != len(weights):
        raise ZigpassError(f"got {len(layouts)} layouts, {len(biases)} biases and {len(weights)} packed tensors")
    plans = [
        checked_plan(x, part, bias, threshold, layout)
        for part, bias, layout in zip(parts, biases, layouts, strict=True)
    ]
    if not is_decode(x):
        rows = x.float()
        return [
            linear_rows(rows, part, bias, plan).to(x.dtype)
            for part, bias, plan in zip(parts, biases, plans, strict=True)
        ]
    row = x.contiguous()
    dtype = DTYPE_CODES[x.dtype]
    outs = [x.new_empty((*x.shape[:-1], plan.n)) for plan in plans]
    records = pack_records(
        [
            plan.record(part, bias, out.data_ptr(), dtype)
            for plan, part, bias, out in zip(plans, parts, biases, outs, strict=True)
        ]
    )
    address, size = address_and_size(threshold)
    project(row.data_ptr(), dtype, x.shape[-1], address, size, records.buffer_info()[0], len(plans))
    return outs
