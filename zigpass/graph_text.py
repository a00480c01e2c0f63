"""A graph as lines that a person reads: one per node, with shapes, and weights by the names they have in the model."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.graph import inplace_methods, magic_methods
from torch.utils._dtype_abbrs import dtype_abbrs

from zigpass import passes

OPERATORS = {**magic_methods, **inplace_methods}
"""Python's operators by the name of their function, as fx writes them."""

_TENSOR_OF_MODULE = re.compile(r"\._(parameters|buffers)\[")


@dataclasses.dataclass(frozen=True)
class Line:
    """One node of a graph.

    Attributes:
        node: its name.
        module: qualified name of the module that it comes from; empty for inputs and outputs.
        text: what it computes, such as "silu: f32[1, 1, 1536] = silu(gate)".
    """

    node: str
    module: str
    text: str

    @property
    def block(self) -> str:
        """The repeated block that it belongs to; empty outside of all blocks."""
        return block_of(self.module)


def block_of(module: str) -> str:
    """The member of a list of modules that holds a module: "model.layers.3.mlp" -> "model.layers.3"."""
    parts = module.split(".")
    index = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    return "" if index is None else ".".join(parts[: index + 1])


def graph_lines(gm: GraphModule, names: Mapping[str, str]) -> list[Line]:
    """The nodes of a graph in order, without the weights and constants, which stand where they are used.

    Args:
        names: names that people know, by the names of the nodes that read a weight or a constant. What lies in the
            part of the model that a node comes from is named relative to it.
    """
    lines = []
    for node in gm.graph.nodes:
        if node.name not in names:
            module = _module(node)
            lines.append(Line(node.name, module, Speller(names, _section(module)).statement(node)))
    return lines


def as_code(lines: Sequence[Line]) -> list[str]:
    """The text of the lines, with a comment wherever another module begins."""
    code: list[str] = []
    section: str | None = None
    for line in lines:
        if line.module and _section(line.module) != section:
            section = _section(line.module)
            code.append(f"# {section or 'model'}")
        code.append(line.text)
    return code


def tensor_names(gm: GraphModule, given: Mapping[str, str]) -> dict[str, str]:
    """Names for the nodes of a graph that read weights and constants.

    Args:
        given: those that are known, by placeholder; attributes are named after where they lie.
    """
    attributes = {node.name: str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    return {**attributes, **given}


def source_names(gm: GraphModule) -> dict[str, str]:
    """Names of the weights in a graph that a backend gets, by placeholder, from where Dynamo found them."""
    names = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        source = getattr(getattr(node, "_dynamo_source", None), "name", "")
        source = source() if callable(source) else source  # a method before torch 2.10
        if _TENSOR_OF_MODULE.search(source):
            names[node.name] = passes.clean_path(_TENSOR_OF_MODULE.sub("[", source))
    return names


def _module(node: Node) -> str:
    if node.op in ("placeholder", "output"):
        return ""
    return passes.module_name(node) if node.meta.get("nn_module_stack") else ""


def _section(module: str) -> str:
    """What is directly in the block: "model.layers.3.mlp.gate_proj" -> "model.layers.3.mlp"; else what holds it."""
    block = block_of(module)
    return ".".join(module.split(".")[: block.count(".") + 2]) if block else module.rpartition(".")[0]


def describe(value: Any) -> str:
    """A fake value in short: "f32[1, 1, 576]"."""
    if isinstance(value, Tensor):
        return f"{dtype_abbrs.get(value.dtype, str(value.dtype))}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(describe, value))})"
    return type(value).__name__


def target_name(target: Any) -> str:
    """What a node calls: "zigpass.linear", "aten.mul.Tensor", "silu"."""
    if isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(target).removesuffix(".default")
    return str(getattr(target, "__name__", target))


class Speller:
    """Writes the nodes of one section of a graph."""

    def __init__(self, names: Mapping[str, str], section: str) -> None:
        self._names = names
        self._section = f"{section}." if section else ""

    def statement(self, node: Node) -> str:
        if node.op == "output":
            return f"return {self._value(node.args[0])}"
        value = passes.fake_value(node)
        described = f": {describe(value)}" if value is not None else ""
        return f"{node.name}{described} = {'input' if node.op == 'placeholder' else self._call(node)}"

    def _call(self, node: Node) -> str:
        args = [self._value(arg) for arg in node.args]
        keywords = [f"{name}={self._value(value)}" for name, value in node.kwargs.items()]
        if node.op == "call_method":
            return f"{args[0]}.{node.target}({', '.join([*args[1:], *keywords])})"
        if getattr(node.target, "__module__", None) == "_operator":
            name = getattr(node.target, "__name__", "")
            if name == "getitem":
                index = args[1][1:-1] if isinstance(node.args[1], tuple) else args[1]
                return f"{args[0]}[{index}]"
            if name in OPERATORS:
                return OPERATORS[name].format(*args)
        return f"{target_name(node.target)}({', '.join([*args, *keywords])})"

    def _name(self, value: object) -> str | None:
        name = self._names.get(value.name) if isinstance(value, Node) else None
        return None if name is None else name.removeprefix(self._section)

    def _value(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._name(value) or value.name
        if isinstance(value, (list, tuple)):
            return self._sequence(value)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {self._value(item)}" for key, item in value.items()) + "}"
        if isinstance(value, slice):
            parts = ["" if part is None else self._value(part) for part in (value.start, value.stop, value.step)]
            return ":".join(parts if parts[2] else parts[:2])
        return repr(value)

    def _sequence(self, values: Sequence[Any]) -> str:
        """A list; the tensors of one module, which belong together, as "mlp.gate_proj.(codes, scale, zero)"."""
        split = [(self._name(value) or "").rpartition(".") for value in values]
        written = []
        for parent, group in itertools.groupby(zip(values, split, strict=True), key=lambda item: item[1][0]):
            members = list(group)
            if parent and len(members) > 1:
                written.append(f"{parent}.({', '.join(leaf for _, (_, _, leaf) in members)})")
            else:
                written += [self._value(value) for value, _ in members]
        inside = ", ".join(written)
        return f"[{inside}]" if isinstance(values, list) else f"({inside}{',' * (len(values) == 1)})"
