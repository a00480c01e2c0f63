"""Toy models with blocks, for the tests of the inspection tools; factories as `zigpass inspect` takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.passes.graphs import Block, one_row
from zigpass.config import ZigzagConfig
from zigpass.quantize import quantize_
from zigpass.sites import find_sites


class Stack(nn.Module):
    """Residual blocks in a list, as decoders have them."""

    def __init__(self, *bodies: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(body) for body in bodies)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def swiglu(m: Any, x: Tensor) -> Tensor:
    return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))


def leaky(m: Any, x: Tensor) -> Tensor:
    return m.down_proj(F.leaky_relu(m.gate_proj(x)) * m.up_proj(x))


def packed_stack(*bodies: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """A quantized stack, every site at one threshold."""
    torch.manual_seed(0)
    model = quantize_(Stack(*bodies).eval(), ZigzagConfig(group_size=32), progress=False)
    for site in find_sites(model).values():
        site.set_threshold(0.3)
    return model


def build() -> tuple[nn.Module, tuple[Tensor]]:
    """One block that matches and one that does not."""
    torch._dynamo.reset()
    return packed_stack(swiglu, leaky), (one_row(),)


def build_alone() -> nn.Module:
    """Without arguments, and no language model."""
    return packed_stack(swiglu)


not_a_factory = 3
