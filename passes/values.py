"""What a graph knows about its values: shapes, dtypes, storage."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

META_KEYS: Final = ("example_value", "val")
"""Where Dynamo and where torch.export keep the fake value of a node."""
FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)


def fake_value(node: Node) -> Any:
    """The fake value a node was traced with, None when the graph carries none."""
    return next((node.meta[key] for key in META_KEYS if key in node.meta), None)


def set_fake_value(node: Node, value: Any, like: Node) -> None:
    """Give a new node its fake value, under the key that the node `like` uses."""
    key = next((key for key in META_KEYS if key in like.meta), META_KEYS[0])
    node.meta[key] = value


def tensor_of(node: object) -> Tensor | None:
    value = fake_value(node) if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def shape_of(node: object) -> tuple[int | torch.SymInt, ...] | None:
    tensor = tensor_of(node)
    return None if tensor is None else tuple(tensor.shape)


def fixed_shape(node: object) -> tuple[int, ...] | None:
    """The shape when all of it is known; comparing symbolic sizes would add guards to the user's graph."""
    sizes = shape_of(node)
    known = tuple(size for size in sizes or () if isinstance(size, int))
    return known if sizes is not None and len(known) == len(sizes) else None


def num_rows(node: Node) -> int | torch.SymInt | None:
    """Rows of an activation [..., features]: an int, a symbol, or None when the graph carries no shapes."""
    shape = shape_of(node)
    if shape is None:
        return None
    rows: int | torch.SymInt = 1
    for size in shape[:-1]:
        rows = rows * size
    return rows


def last_size(tensor: Tensor) -> int | None:
    """The number of features, None when it is symbolic."""
    size = tensor.shape[-1] if tensor.dim() else None
    return size if isinstance(size, int) else None


def dtype_of(node: object) -> torch.dtype | None:
    tensor = tensor_of(node)
    return None if tensor is None else tensor.dtype


def share_storage(first: Node, second: Node) -> bool:
    """Whether one value is a view of the other's memory. Fake tensors alias exactly as the real ones do."""
    if first is second:
        return True
    storages = [_storages(node) for node in (first, second)]
    return bool(storages[0] & storages[1])


def _storages(node: Node) -> set[int]:
    values = fake_value(node)
    values = values if isinstance(values, (list, tuple)) else [values]
    return {value.untyped_storage()._cdata for value in values if isinstance(value, Tensor)}
