"""Checks of op arguments before an address is taken, cheap enough for every call.

When an argument does not fit, the full checks of `zigpass.runtime.ops` say what is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..errors import ZigpassError
from ..quantized import FLOAT_DTYPES
from ..reference import COUNT_DTYPE
from .floats import DTYPE_CODES
from .predict import LARGEST
from .record import WeightPlan

_INPUT_CODES = {dtype: DTYPE_CODES[dtype] for dtype in ops.SUPPORTED_DTYPES}


def checked_input(x: Tensor, plan: WeightPlan) -> int:
    """The dtype code of an input that fits a weight.

    Raises:
        ZigpassError: another dtype, or another number of features.
    """
    code = _INPUT_CODES.get(x.dtype)
    if code is None:
        raise ZigpassError(f"x has dtype {x.dtype}, zigpass ops take {ops.SUPPORTED_DTYPES}")
    if x.shape[-1] != plan.k:
        raise ZigpassError(f"x has {x.shape[-1]} features, the weight {plan.layout.spec} has K={plan.k}")
    return code


def checked_threshold(threshold: Tensor | None, plan: WeightPlan) -> tuple[int, int]:
    """Address and number of entries of a threshold that fits a weight; `LARGEST` for a count of entries.

    Raises:
        ZigpassError: another dtype, size or strides.
    """
    if threshold is None:
        return 0, 0
    size = threshold.numel()
    if size == 1:
        if threshold.dtype == torch.float32:
            return threshold.data_ptr(), 1
        if threshold.dtype == COUNT_DTYPE:
            return threshold.data_ptr(), LARGEST
    if threshold.dtype != torch.float32 or not threshold.is_contiguous():
        raise ZigpassError(
            f"the threshold for {plan.layout.spec} is {threshold.dtype} with strides {threshold.stride()},"
            f" expected contiguous float32, or one entry of {COUNT_DTYPE}"
        )
    if size != plan.k:
        raise ZigpassError(f"threshold has {size} entries, {plan.layout.spec} takes 1 or {plan.k}")
    return threshold.data_ptr(), size


def checked_bias(plan: WeightPlan, bias: Tensor | None) -> None:
    """
    Raises:
        ZigpassError: a bias of another size, dtype or strides.
    """
    if bias is not None and (bias.numel() != plan.n or bias.dtype not in FLOAT_DTYPES or not bias.is_contiguous()):
        raise ZigpassError(
            f"the bias of {plan.layout.spec} is {bias.dtype} {tuple(bias.shape)} with strides {bias.stride()},"
            f" expected N={plan.n} contiguous entries of one of {FLOAT_DTYPES}"
        )
