"""Fuse linears that read one activation with one threshold, such as q, k and v, into one `zigpass.qkv`.

    q = zigpass.linear(x, ...)                    parts = zigpass.qkv(x, [q..., k..., v...], ...)
    k = zigpass.linear(x, ...)            ->      q, k, v = parts[0], parts[1], parts[2]
    v = zigpass.linear(x, ...)

One predict and one launch then serve all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable

from torch.fx import GraphModule, Node

from .context import Context, Fusion, Linear, Match
from .mutation import find_write_between
from .names import joined
from .op_table import spelled
from .rewrite import erase_nodes, insert_op, move_constants_before
from .values import META_KEYS, fake_value, set_fake_value


def fuse_qkv(gm: GraphModule, context: Context) -> int:
    """Fuse every group of two or more linears that share input and threshold; return the number of groups."""
    linears = [linear for linear in context.packed_linears if context.wants(linear)]
    _note_near_misses(linears, context)
    count = 0
    for members in _groups(linears, lambda linear: (linear.x, linear.threshold)):
        # Looked up anew: fusing one group may have replaced the input of this one.
        group = [context.linears[linear.node] for linear in members]
        reason = check_group(group)
        if reason is not None:
            context.refuse("qkv", group, reason)
            continue
        _fuse(gm, context, group)
        count += 1
    return count


def check_group(group: list[Linear]) -> str | None:
    """Why these linears cannot run as one op at the place of the first, or None when they can."""
    first, last = group[0].node, group[-1].node
    values = [node for linear in group for node in linear.inputs]
    write = find_write_between(first, last, values)
    if write is not None:
        return f"{write.name} ({spelled(write)}) writes in place into an input between the linears"
    late = move_constants_before(first, values)
    if late is not None:
        return f"{late.name} ({spelled(late)}) is computed after {group[0].module} has run"
    return None


def _note_near_misses(linears: list[Linear], context: Context) -> None:
    for group in _groups(linears, lambda linear: linear.x):
        if len({linear.threshold for linear in group}) > 1:
            thresholds = dict.fromkeys(str(getattr(linear.threshold, "name", None)) for linear in group)
            reason = f"they read one activation but have different thresholds ({', '.join(thresholds)})"
            names = joined([linear.module for linear in group])
            context.refuse("qkv", group, f"{names}: {reason}: give the linears the same Site")
    for group in _groups(linears, lambda linear: linear.threshold):
        if group[0].threshold is not None and len({linear.x for linear in group}) > 1:
            inputs = ", ".join(dict.fromkeys(linear.x.name for linear in group))
            names = joined([linear.module for linear in group])
            context.refuse("qkv", group, f"{names}: they share a threshold but read different inputs ({inputs})")


def _groups(linears: Iterable[Linear], key: Callable[[Linear], object]) -> list[list[Linear]]:
    """Linears with an equal key, in graph order, two or more together."""
    groups: dict[object, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(key(linear), []).append(linear)
    return [group for group in groups.values() if len(group) > 1]


def _fuse(gm: GraphModule, context: Context, group: list[Linear]) -> None:
    first = group[0].node
    weights = [node for linear in group for node in linear.weight]
    layouts = [linear.layout for linear in group]
    args = (group[0].x, weights, [linear.bias for linear in group], group[0].threshold, layouts)
    fused = insert_op(gm.graph, first, "qkv", args, like=first, replaced=[linear.node for linear in group])
    context.fusions.append(Fusion(fused, tuple(fake_value(linear.node) for linear in group)))
    context.matches.append(Match.of("qkv", group))
    for index, linear in enumerate(group):
        context.replace(linear, _take_part(gm, first, fused, index, linear.node))
    erase_nodes(gm.graph, [linear.node for linear in group])


def _take_part(gm: GraphModule, before: Node, fused: Node, index: int, old: Node) -> Node:
    with gm.graph.inserting_before(before):
        part = gm.graph.call_function(operator.getitem, (fused, index))
    part.meta = {key: value for key, value in old.meta.items() if key not in META_KEYS}
    set_fake_value(part, fake_value(fused)[index], like=old)
    return part
