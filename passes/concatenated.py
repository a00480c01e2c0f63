"""Cutting out again what was concatenated: `torch.cat([a, b], -1).chunk(2, -1)[0]` is `a`.

Gate and up that a model keeps in one linear are two packed linears behind a concatenation; the model then cuts the
result with chunk, split, narrow or a slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes

from .op_table import argument, canonical
from .values import dtype_of, last_size, shape_of, tensor_of


def find_concatenated(node: Node) -> tuple[Node, list[Node]] | None:
    """The value that a part of a concatenation along the features is, and the nodes between, last first."""
    parts = []
    whole: object = node
    while isinstance(whole, Node) and canonical(whole) == "part":
        parts.append(whole)
        whole = whole.args[0]
    if not parts or not isinstance(whole, Node) or canonical(whole) != "cat" or not _same_rows(node, whole):
        return None
    columns = _columns(parts[::-1], whole)
    start = 0
    for value in _members(whole):
        size = last_size(tensor) if (tensor := tensor_of(value)) is not None else None
        if size is None:
            return None
        if columns == list(range(start, start + size)) and dtype_of(value) == dtype_of(whole):
            return value, [*parts, whole]
        start += size
    return None


def _members(cat: Node) -> list[Node]:
    """What is concatenated, when that happens along the last dimension."""
    values, shape = argument(cat, 0, "tensors"), shape_of(cat)
    dim = argument(cat, 1, "dim", 0)
    if shape is None or dim not in (-1, len(shape) - 1) or not isinstance(values, (list, tuple)):
        return []
    return [value for value in values if isinstance(value, Node)] if all(map(_is_node, values)) else []


def _columns(parts: list[Node], whole: Node) -> list[int]:
    """Which features of `whole` a chain of parts leaves: the chain is applied to their numbers.

    So every spelling of a part means what torch says it means.
    """
    tensor = tensor_of(whole)
    size = last_size(tensor) if tensor is not None else None
    if tensor is None or size is None:
        return []
    with _disable_current_modes():  # a backend may be called while values are being faked
        value: Any = torch.arange(size).view(*[1] * (tensor.dim() - 1), size)
        try:
            for part in parts:
                value = _call(part, value)
        except (RuntimeError, IndexError, TypeError, ValueError):
            return []  # a part along the rows, or one with a size that only running the model would tell
        same = isinstance(value, Tensor) and value.dim() == tensor.dim()
        return [int(column) for column in value.flatten()] if same else []


def _call(part: Node, value: Any) -> Any:
    nodes: list[Node] = []
    map_arg((part.args[1:], part.kwargs), nodes.append)
    if nodes:
        raise ValueError("depends on a value of the graph")
    if part.op == "call_method":
        return getattr(value, str(part.target))(*part.args[1:], **part.kwargs)
    assert callable(part.target)
    return part.target(value, *part.args[1:], **part.kwargs)


def _same_rows(node: Node, whole: Node) -> bool:
    """Whether two values agree in all but the last dimension. Symbols are compared as they are written: asking
    whether they are equal would add a guard to the user's graph.
    """
    first, second = shape_of(node), shape_of(whole)
    if first is None or second is None or len(first) != len(second):
        return False
    return [str(size) for size in first[:-1]] == [str(size) for size in second[:-1]]


def _is_node(value: object) -> bool:
    return isinstance(value, Node)
