"""A linear of a graph that dequantizes its weight itself, as a module: what recognizers and `prepare` work on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from zigpass.passes import WeightLeaf


class DequantizedLinear(nn.Module):
    """y = dequantize(...) x + bias, with the call that the graph makes.

    Args:
        op: the operator that dequantizes.
        arguments: its arguments by name; the codes [N, K] are called "input".
        bias: [N] or None.
    """

    bias: Tensor | None

    def __init__(self, op: torch._ops.OpOverload, arguments: Mapping[str, Any], bias: Tensor | None) -> None:
        super().__init__()
        self.op = op
        self.settings = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
        self.tensors = [name for name, value in arguments.items() if isinstance(value, Tensor)]
        for name in self.tensors:
            self.register_buffer(name, arguments[name].detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.out_features, self.in_features = arguments["input"].shape

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the call by name."""
        return {**self.settings, **{name: self._buffers[name] for name in self.tensors}}

    def dequantize(self) -> Tensor:
        """The weight [N, K] that the graph multiplies with."""
        weight: Tensor = self.op(**self.arguments)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantize(), self.bias)


@dataclasses.dataclass(frozen=True)
class _Source:
    """The place of a tensor among the sources of a leaf."""

    index: int


@dataclasses.dataclass(frozen=True)
class LeafCall:
    """How the weight of a `WeightLeaf` is made of its tensors; stays valid when the graph is rewritten.

    Attributes:
        op: the operator that dequantizes; None for a tensor subclass, which is a weight as it is.
        arguments: of the operator by name.
    """

    op: torch._ops.OpOverload | None
    arguments: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(leaf: WeightLeaf) -> LeafCall:
        target: Any = leaf.node.target
        if not isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)) or leaf.sources == (leaf.node,):
            return LeafCall(None, ())
        op = _overload(target, leaf.node)
        given = dict(zip([argument.name for argument in op._schema.arguments], leaf.node.args, strict=False))
        index = {node: _Source(place) for place, node in enumerate(leaf.sources)}
        arguments = {name: _with_sources(value, index) for name, value in {**given, **leaf.node.kwargs}.items()}
        return LeafCall(op, tuple(arguments.items()))

    def module(self, tensors: Sequence[Tensor], bias: Tensor | None) -> nn.Module:
        """A module that multiplies with the weight; it shares the tensors.

        Args:
            tensors: those of `WeightLeaf.sources`.
            bias: [N] or None.
        """
        if self.op is None:
            return _linear_with(tensors[0], bias)
        arguments = {
            name: tensors[value.index] if isinstance(value, _Source) else value for name, value in self.arguments
        }
        return DequantizedLinear(self.op, arguments, bias)


def _with_sources(value: Any, index: Mapping[Node, _Source]) -> Any:
    return index[value] if isinstance(value, Node) else value


def _overload(target: Any, node: Node) -> torch._ops.OpOverload:
    """The operator behind a packet: the one whose scale is a tensor where the graph has one."""
    if isinstance(target, torch._ops.OpOverload):
        return target
    scale_is_tensor = len(node.args) > 1 and isinstance(node.args[1], Node)
    names = ["tensor", "default"] if scale_is_tensor else ["default"]
    found: torch._ops.OpOverload = getattr(target, next(name for name in names if name in target.overloads()))
    return found


def _linear_with(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An `nn.Linear` of a weight that is a tensor subclass."""
    n, k = weight.shape
    linear = nn.Linear(k, n, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
