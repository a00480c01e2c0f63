"""One name for every spelling of an operation.

A Dynamo graph says `operator.mul`, `torch.mul`, `x.mul(...)` or `x *= ...`; an exported graph says `aten.mul.Tensor`.
The tables below are data: teaching the passes another spelling is adding a row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch.fx import Node

NAMESPACE: Final = "zigpass"

FUNCTIONS: Final[dict[Callable[..., Any], str]] = {
    F.linear: "linear",
    torch.addmm: "addmm",
    F.silu: "silu",
    F.gelu: "gelu",
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.special.expit: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    torch.erf: "erf",
    torch.special.erf: "erf",
    torch.pow: "pow",
    operator.pow: "pow",
    torch.square: "square",
    torch.mul: "mul",
    torch.multiply: "mul",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.div: "div",
    operator.truediv: "div",
    torch.add: "add",
    operator.add: "add",
    operator.iadd: "add",
    F.dropout: "dropout",
    F.scaled_dot_product_attention: "attention",
    torch.dropout: "dropout",
    torch.clone: "clone",
    torch.reshape: "reshape",
    torch.flatten: "reshape",
    torch.unsqueeze: "reshape",
    torch.squeeze: "reshape",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
    operator.getitem: "part",
    torch.chunk: "part",
    torch.split: "part",
    torch.narrow: "part",
    torch.unbind: "part",
}
"""Python callables as Dynamo records them. Several names may be one object: F.linear is torch._C._nn.linear."""

METHODS: Final[dict[str, str]] = {
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
    "erf": "erf",
    "erf_": "erf",
    "pow": "pow",
    "pow_": "pow",
    "__pow__": "pow",
    "square": "square",
    "square_": "square",
    "mul": "mul",
    "mul_": "mul",
    "multiply": "mul",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__imul__": "mul",
    "div": "div",
    "div_": "div",
    "__truediv__": "div",
    "add": "add",
    "add_": "add",
    "__add__": "add",
    "__radd__": "add",
    "to": "cast",
    "type": "cast",
    "type_as": "cast",
    "float": "cast",
    "half": "cast",
    "bfloat16": "cast",
    "contiguous": "clone",
    "clone": "clone",
    "detach": "clone",
    "view": "reshape",
    "reshape": "reshape",
    "expand": "expand",
    "flatten": "reshape",
    "unsqueeze": "reshape",
    "squeeze": "reshape",
    "chunk": "part",
    "split": "part",
    "narrow": "part",
    "unbind": "part",
    "__getitem__": "part",
}

OVERLOADS: Final[dict[str, str]] = {
    "zigpass::linear": "packed_linear",
    "aten::linear": "linear",
    "aten::addmm": "addmm",
    "aten::silu": "silu",
    "aten::silu_": "silu",
    "aten::gelu": "gelu",
    "aten::gelu_": "gelu",
    "aten::relu": "relu",
    "aten::relu_": "relu",
    "aten::sigmoid": "sigmoid",
    "aten::tanh": "tanh",
    "aten::erf": "erf",
    "aten::pow": "pow",
    "aten::square": "square",
    "aten::mul": "mul",
    "aten::mul_": "mul",
    "aten::div": "div",
    "aten::div_": "div",
    "aten::add": "add",
    "aten::add_": "add",
    "aten::to": "cast",
    "aten::_to_copy": "cast",
    "aten::type_as": "cast",
    "prims::convert_element_type": "cast",
    "aten::dropout": "dropout",
    "aten::contiguous": "clone",
    "aten::clone": "clone",
    "aten::alias": "clone",
    "aten::detach": "clone",
    "aten::detach_": "clone",
    "aten::lift_fresh_copy": "clone",
    "aten::view": "reshape",
    "aten::_unsafe_view": "reshape",
    "aten::reshape": "reshape",
    "aten::flatten": "reshape",
    "aten::unsqueeze": "reshape",
    "aten::squeeze": "reshape",
    "aten::expand": "expand",
    "aten::scaled_dot_product_attention": "attention",
    "aten::cat": "cat",
    "aten::chunk": "part",
    "aten::split": "part",
    "aten::split_with_sizes": "part",
    "aten::slice": "part",
    "aten::narrow": "part",
    "aten::unbind": "part",
    "torchao::dequantize_affine": "dequantize",
    "quantized_decomposed::dequantize_per_tensor": "dequantize",
    "quantized_decomposed::dequantize_per_channel": "dequantize",
    "quantized_decomposed::dequantize_per_channel_group": "dequantize",
    "export::access_subclass_inner_tensor": "inner_tensor",
}
"""Operators by qualified name, all overloads of it; the recognizers look at the arguments."""


def schema_name(node: Node) -> str | None:
    """The qualified name ("aten::mul") of an operator call; None for plain Python functions and methods."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name
    if isinstance(node.target, torch._ops.OpOverloadPacket):
        return node.target._qualified_op_name
    return None


def canonical(node: object) -> str | None:
    """The canonical name of what a node does, or None when the tables do not know it."""
    if not isinstance(node, Node):
        return None
    if node.op == "call_method":
        return METHODS.get(str(node.target))
    if node.op != "call_function":
        return None
    name = schema_name(node)
    if name is not None:
        return OVERLOADS.get(name)
    return FUNCTIONS.get(node.target) if callable(node.target) else None


def spelled(node: Node) -> str:
    """A node's operation as a reader would write it: "torch.tanh", "x.clamp()", "aten.mul.Tensor"."""
    if node.op == "call_method":
        return f"x.{node.target}()"
    if node.op == "call_function":
        return str(node.target) if schema_name(node) else str(getattr(node.target, "__name__", node.target))
    return node.op


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """The argument of a call, given by position or by name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def zigpass_op(name: str) -> torch._ops.OpOverload:
    """A zigpass operator by name, resolved when it is needed: the passes do not import the kernels."""
    op: torch._ops.OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    return op
