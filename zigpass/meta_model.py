"""Models that were built on the meta device and are filled tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def fill_computed_buffers(model: Any) -> None:
    """Give memory and values to the buffers that a transformers model computes and does not store.

    Rotary frequencies are such buffers; the model's own initialisation fills them. Call it before the weights are
    set: on the meta device initialising those costs and changes nothing.
    """
    for module in model.modules():
        empty = {name: buffer for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta}
        if empty:
            for name, buffer in empty.items():
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
            model._init_weights(module)


def find_meta_tensors(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that have no data."""
    return [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
