"""Checks of op arguments before an address is taken, cheap enough for every call.

What depends only on the layout and the dtypes is checked once, in `weight_plan`; per call a few sizes are compared.
When one does not fit, the full checks of `zigpass.runtime.ops` run to say what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..errors import ZigpassError
from ..quantized import FLOAT_DTYPES
from .record import WeightPlan, weight_plan


def checked_plan(
    x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str
) -> WeightPlan:
    """The plan of a weight that x and the threshold fit.

    Raises:
        ZigpassError: sizes, dtypes or strides that the kernels cannot take.
    """
    plan = weight_plan(layout, *[tensor.dtype for tensor in weight])
    if x.dtype not in ops.SUPPORTED_DTYPES or x.shape[-1] != plan.k:
        ops.check_linear(x, weight, threshold, layout)
    return checked_weight(plan, weight, bias, threshold)


def checked_weight(
    plan: WeightPlan, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None
) -> WeightPlan:
    """As `checked_plan`, for a weight whose input is not a tensor yet (the down projection of an MLP)."""
    if not plan.fits(weight):
        raise plan.explain_misfit(weight)
    if bias is not None and (bias.numel() != plan.n or bias.dtype not in FLOAT_DTYPES or not bias.is_contiguous()):
        raise ZigpassError(
            f"the bias of {plan.layout.spec} is {bias.dtype} {tuple(bias.shape)} with strides {bias.stride()},"
            f" expected N={plan.n} contiguous entries of one of {FLOAT_DTYPES}"
        )
    if threshold is not None:
        if threshold.dtype != torch.float32 or not threshold.is_contiguous():
            raise ZigpassError(
                f"the threshold for {plan.layout.spec} is {threshold.dtype} with strides {threshold.stride()},"
                " expected contiguous float32"
            )
        if threshold.numel() != 1 and threshold.numel() != plan.k:
            raise ZigpassError(f"threshold has {threshold.numel()} entries, {plan.layout.spec} takes 1 or {plan.k}")
    return plan


def address_and_size(threshold: Tensor | None) -> tuple[int, int]:
    return (0, 0) if threshold is None else (threshold.data_ptr(), threshold.numel())
