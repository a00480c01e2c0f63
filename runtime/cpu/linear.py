"""`linear` and `qkv` on the CPU; `zigpass.runtime.reference` says what they compute."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import ZigpassError
from ..reference import split_weights
from .arguments import checked_input, checked_threshold
from .bound import bind
from .call import DIGITS, HEADER_FIELDS, NUM_THRESHOLDS_IN, ROWS, TEAM, THREADS, THRESHOLD_IN, X_DTYPE, X
from .parallel import team
from .record import OUT, OUT_DTYPE, RECORD_FIELDS
from .results import new_results
from .rows import linear_rows
from .variants import current_variant


def linear(x: Tensor, weight: list[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str) -> Tensor:
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
    (out,) = _project(x, weight, None if bias is None else (bias,), threshold, (layout,))
    return out


def qkv(
    x: Tensor,
    weights: list[Tensor],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[str],
) -> list[Tensor]:
    """Several weights that share the input x and its threshold; one result per layout.

    Args:
        weights: the packed tensors of all weights, one after the other.
        biases: one entry per weight.
    """
    given = None
    for bias in biases:
        if bias is not None:
            given = biases
    if len(biases) != len(layouts):
        raise ZigpassError(f"got {len(layouts)} layouts, {len(biases)} biases and {len(weights)} packed tensors")
    return _project(x, weights, given, threshold, tuple(layouts))


def _project(
    x: Tensor,
    weights: list[Tensor],
    biases: Sequence[Tensor | None] | None,
    threshold: Tensor | None,
    specs: tuple[str, ...],
) -> list[Tensor]:
    bound = bind(weights, biases, specs)
    plans = bound.plans
    plan = plans[0]
    dtype = checked_input(x, plan)
    threshold_at, num_thresholds = checked_threshold(threshold, plan)
    if not bound.fits_project:
        for other in plans:
            checked_input(x, other)
        bound.fits_project = True
    num_rows = x.numel() // plan.k
    variant = current_variant()
    if not 1 <= num_rows <= variant.most_rows:
        rows, parts = x.float(), split_weights(weights, specs)
        return [
            linear_rows(rows, part, biases[i] if biases else None, plan).to(x.dtype)
            for i, (part, plan) in enumerate(zip(parts, plans, strict=True))
        ]
    row = x.contiguous()
    outs = new_results(x, num_rows, bound.sizes_out)
    call = bound.new_call()
    call[X] = row.data_ptr()
    call[X_DTYPE] = dtype
    call[ROWS] = num_rows
    if num_rows == 1:
        call[THRESHOLD_IN] = threshold_at
        call[NUM_THRESHOLDS_IN] = num_thresholds
    call[DIGITS] = variant.digits()
    call[TEAM], call[THREADS] = team(bound.num_codes * num_rows)
    at = HEADER_FIELDS
    for out in outs:
        call[at + OUT] = out.data_ptr()
        call[at + OUT_DTYPE] = dtype
        at += RECORD_FIELDS
    variant.project(call.buffer_info()[0])
    return outs
