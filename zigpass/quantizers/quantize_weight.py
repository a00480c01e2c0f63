"""The one entry to all quantizers."""

from __future__ import annotations

import torch
from torch import Tensor

from zigpass.config import SCALE_DTYPES, ZigzagConfig
from zigpass.runtime import QuantizedWeight, ZigpassError

from .columns import SHRINKS as COLUMN_SHRINKS
from .columns import quantize_columns
from .feedback import quantize_with_feedback
from .groups import SHRINKS as GROUP_SHRINKS
from .groups import quantize_groups

FULL_RANGE = (1.0,)


def quantize_weight(weight: Tensor, config: ZigzagConfig, gram: Tensor | None = None) -> QuantizedWeight:
    """Quantize one matrix.

    Args:
        weight: finite float [N, K].
        config: bits, groups and method.
        gram: float32 [K, K], sum of x x^T over the inputs x of this layer; needed by the method "gptq" and by no other.

    Returns:
        Codes and scales on the weight's device.

    Raises:
        ZigpassError: a scale does not fit the scale dtype, or the method needs `gram`.
    """
    searching = config.method != "rtn"
    with torch.no_grad():
        if config.method == "gptq":
            if gram is None:
                raise ZigpassError('method "gptq" needs inputs of the layer; pass calibration= to quantize_')
            found = quantize_with_feedback(weight, config, gram)
        elif config.scale_axis == "in":
            dtype = SCALE_DTYPES[config.scale_dtype]
            shrinks = GROUP_SHRINKS if searching else FULL_RANGE
            found = quantize_groups(weight, config.bits, config.group_size, dtype, shrinks)
        else:
            found = quantize_columns(weight, config.bits, COLUMN_SHRINKS if searching else FULL_RANGE)
    return found
