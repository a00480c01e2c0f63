"""`linear` and `qkv` on the CPU; `zigpass.runtime.reference` says what they compute."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence

from torch import Tensor

from ..errors import ZigpassError
from ..layout import Layout
from .arguments import checked_input, checked_threshold
from .bound import bind
from .parallel import team
from .rows import linear_rows
from .variants import current_variant


def linear(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str) -> Tensor:
    """y = W x + bias; one row reads only the columns of active entries, more rows run dense.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        weight: packed tensors of W [N, K] in the order of `PackedWeight.tensors`.
        bias: [N] or None.
        threshold: float32 [1] or [K], int32 [1] (how many of the largest entries to read), or None for dense.
        layout: `Layout.spec` of the weight.

    Returns:
        [..., N] in x's dtype.
    """
    bound = bind(weight, bias, layout)
    plan = bound.plan
    dtype = checked_input(x, plan)
    address, size = checked_threshold(threshold, plan)
    num_rows = x.numel() // plan.k
    variant = current_variant()
    if not 1 <= num_rows <= variant.most_rows:
        return linear_rows(x.float(), weight, bias, plan).to(x.dtype)
    if num_rows > 1:
        address = size = 0
    row = x.contiguous()
    out = x.new_empty((*x.shape[:-1], plan.n))
    record = bound.record(out.data_ptr(), dtype)
    variant.project(
        row.data_ptr(), dtype, num_rows, plan.k, address, size, record.buffer_info()[0], 1,
        variant.digits(), *team(plan.num_codes * num_rows),
    )  # fmt: skip
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
    cuts = _cuts(tuple(layouts))
    if len(biases) != len(layouts) or cuts[-1].stop != len(weights):
        raise ZigpassError(f"got {len(layouts)} layouts, {len(biases)} biases and {len(weights)} packed tensors")
    bounds = [bind(weights[cut], bias, spec) for cut, bias, spec in zip(cuts, biases, layouts, strict=True)]
    dtype = checked_input(x, bounds[0].plan)
    address, size = checked_threshold(threshold, bounds[0].plan)
    k, codes = bounds[0].plan.k, 0
    for bound in bounds:
        if bound.plan.k != k:
            checked_input(x, bound.plan)
        codes += bound.plan.num_codes
    num_rows = x.numel() // k
    variant = current_variant()
    if not 1 <= num_rows <= variant.most_rows:
        rows = x.float()
        return [
            linear_rows(rows, weights[cut], bias, bound.plan).to(x.dtype)
            for cut, bias, bound in zip(cuts, biases, bounds, strict=True)
        ]
    if num_rows > 1:
        address = size = 0
    row = x.contiguous()
    shape = x.shape[:-1]
    outs = [x.new_empty((*shape, bound.plan.n)) for bound in bounds]
    records = array("q")
    for bound, out in zip(bounds, outs, strict=True):
        records += bound.record(out.data_ptr(), dtype)
    variant.project(
        row.data_ptr(), dtype, num_rows, k, address, size, records.buffer_info()[0], len(bounds),
        variant.digits(), *team(codes * num_rows),
    )  # fmt: skip
    return outs


@functools.lru_cache(maxsize=4096)
def _cuts(layouts: tuple[str, ...]) -> list[slice]:
    """Where each weight's tensors lie in the list of all."""
    cuts, start = [], 0
    for spec in layouts:
        cuts.append(slice(start, start + Layout.parse(spec).num_tensors))
        start = cuts[-1].stop
    return cuts
