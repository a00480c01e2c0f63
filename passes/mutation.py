"""In-place operations: which nodes write into which inputs, and whether one lies in the way of a fusion.

A fused node reads its inputs at one place of the graph, where the linears it replaces read them at several. Between
the first and the last of these places nothing may write into what they read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

import torch
from torch.fx import Node

from .values import share_storage

_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
) | {operator.setitem}


def written_inputs(node: Node) -> list[Node]:
    """The inputs whose memory a node writes into; for opaque nodes (higher-order operators) all of its inputs."""
    if node.op == "call_method":
        name = str(node.target)
        in_place = name.endswith("_") and not name.endswith("__")
        return _first(node) if in_place or name in ("__setitem__", "__imul__", "__iadd__") else []
    if node.op == "call_module":
        return list(node.all_input_nodes)
    if node.op != "call_function":
        return []
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return _written_by_schema(node, target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return list(node.all_input_nodes)
    out = node.kwargs.get("out")
    if isinstance(out, Node):
        return [out]
    name = str(getattr(target, "__name__", target))
    in_place = target in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
    return _first(node) if in_place or _inplace_argument(node) else []


def find_write_between(first: Node, last: Node, values: Iterable[Node], ignore: Iterable[Node] = ()) -> Node | None:
    """The first node from `first` up to `last` that writes into the memory of one of `values`."""
    skipped, watched = set(ignore), list(values)
    for node in _nodes_between(first, last):
        if node in skipped:
            continue
        for written in written_inputs(node):
            if any(share_storage(written, value) for value in watched):
                return node
    return None


def writes_shared_value(node: Node) -> bool:
    """Whether a node overwrites a value that another node reads too (so that order decides what that one sees)."""
    for written in written_inputs(node):
        value: object = written
        while isinstance(value, Node):
            if len(value.users) > 1:
                return True
            source = value.args[0] if value.args else None
            value = source if isinstance(source, Node) and share_storage(source, value) else None
    return False


def _nodes_between(first: Node, last: Node) -> Iterator[Node]:
    node = first
    while node is not last:
        yield node
        node = node.next
        if node.op == "root":
            raise AssertionError(f"{last.name} does not come after {first.name}")


def _written_by_schema(node: Node, target: torch._ops.OpOverload) -> list[Node]:
    written: list[Node] = []
    for index, spec in enumerate(target._schema.arguments):
        if spec.alias_info is None or not spec.alias_info.is_write:
            continue
        value = node.args[index] if index < len(node.args) and not spec.kwarg_only else node.kwargs.get(spec.name)
        parts = value if isinstance(value, (list, tuple)) else [value]
        written += [part for part in parts if isinstance(part, Node)]
    return written


def _inplace_argument(node: Node) -> bool:
    """torch.nn.functional activations take `inplace`; Dynamo may record it by position."""
    if node.kwargs.get("inplace"):
        return True
    module = getattr(node.target, "__module__", "")
    return module == "torch.nn.functional" and len(node.args) > 1 and node.args[-1] is True


def _first(node: Node) -> list[Node]:
    return [node.args[0]] if node.args and isinstance(node.args[0], Node) else []
