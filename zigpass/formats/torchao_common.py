"""What the torchao weight tensors have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight

PACKAGE = "torchao"


def torchao_weight(module: nn.Module) -> Any | None:
    """The torchao tensor that a linear has for its weight, or None."""
    if not isinstance(module, nn.Linear):
        return None
    weight = module._parameters.get("weight")
    return weight if weight is not None and type(weight).__module__.split(".")[0] == PACKAGE else None


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear."""
    return module._parameters.get("bias")


def weight_class(module: nn.Module) -> str | None:
    """The name of the class of that tensor."""
    weight = torchao_weight(module)
    return None if weight is None else type(weight).__name__


def pre_scale_refusal(weight: Any) -> str | None:
    """torchao tensors may carry a factor for their input; relaid codes alone would leave it out."""
    if getattr(weight, "act_pre_scale", None) is not None:
        return "it multiplies its input by act_pre_scale (SmoothQuant or AWQ), which the packed form has no place for"
    return None


def shape_refusal(weight: Any) -> str | None:
    if len(weight.shape) != 2 or len(weight.block_size) != 2:
        return f"its weight has shape {tuple(weight.shape)}, expected a matrix"
    return None


def minimum_tolerance(weight: QuantizedWeight) -> Tensor:
    """What rounding the minimum zero - 8 * scale to float32 can change, [N, K].

    Nothing at all for 16-bit scales, unless the minimum is thousands of times the scale: then the difference has at
    most 24 bits. A wrong code would be off by a whole scale.
    """
    scales = weight.scales
    assert isinstance(scales, GroupScales)
    bound = (16 * scales.scale.float().abs() + scales.zero.float().abs()) * torch.finfo(torch.float32).eps
    group = torch.arange(weight.codes.shape[1], device=bound.device) // scales.group_size
    return bound[:, group]
