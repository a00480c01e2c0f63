"""Seeing through nodes that only pass a value on."""

from __future__ import annotations

from torch.fx import Node

from .concatenated import find_concatenated
from .op_table import argument, canonical
from .values import FLOATS, dtype_of, fixed_shape, last_size, tensor_of


def peel(node: object, trail: list[Node] | None = None) -> object:
    """Follow a value back through nodes that pass it on: casts between float dtypes, copies, dropout in eval mode,
    reshapes that keep the last dimension, and cutting out again what was concatenated. The nodes passed are appended
    to `trail`.
    """
    while isinstance(node, Node):
        if _passes_on(node):
            passed: list[Node] = [node]
            node = node.args[0]
        elif (found := find_concatenated(node)) is not None:
            node, passed = found
        else:
            break
        if trail is not None:
            trail += passed
    return node


def is_active_dropout(node: Node) -> bool:
    """Whether this is a dropout that really drops entries (training mode)."""
    if canonical(node) != "dropout":
        return False
    # torch.nn.functional.dropout trains unless told otherwise; torch.dropout and aten must be told.
    train = argument(node, 2, "training", argument(node, 2, "train", True))
    return bool(train) and argument(node, 1, "p", 0.5) != 0


def _passes_on(node: Node) -> bool:
    kind = canonical(node)
    if kind not in ("cast", "clone", "dropout", "reshape") or not node.args or not isinstance(node.args[0], Node):
        return False
    if kind == "dropout":
        return not is_active_dropout(node)
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if before is None or after is None:
        return False
    if kind == "cast":
        return before.dtype in FLOATS and after.dtype in FLOATS
    return kind == "clone" or last_size(before) == last_size(after) is not None


def same_value(first: object, second: object) -> bool:
    """Whether two nodes certainly hold the same numbers: one node, or the same copies and casts of one node."""
    if first is second:
        return True
    if not isinstance(first, Node) or not isinstance(second, Node):
        return False
    if _is_plain_copy(first):
        return same_value(first.args[0], second)
    if _is_plain_copy(second):
        return same_value(first, second.args[0])
    both_casts = canonical(first) == canonical(second) == "cast" and _passes_on(first) and _passes_on(second)
    # The cast itself must be the same too: bfloat16 -> float32 after a rounding is not the value before it.
    return both_casts and dtype_of(first) == dtype_of(second) and same_value(first.args[0], second.args[0])


def _is_plain_copy(node: Node) -> bool:
    """Passes its input on with the same shape and dtype, so that not even rounding changes."""
    if not _passes_on(node) or dtype_of(node) != dtype_of(node.args[0]):
        return False
    return canonical(node) != "reshape" or fixed_shape(node) == fixed_shape(node.args[0]) is not None
