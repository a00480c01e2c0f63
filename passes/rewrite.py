"""Putting a fused node into a graph and taking the nodes it replaces out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from .op_table import zigpass_op
from .values import META_KEYS, fake_value, set_fake_value

STACK: Final = "nn_module_stack"
"""Where a node's meta says which modules it comes from."""


def insert_op(
    graph: Graph, before: Node, name: str, args: tuple[Any, ...], like: Node, replaced: Sequence[Node] = ()
) -> Node:
    """Insert a call of `zigpass.<name>` with the fake value its own shape function gives and `like`'s other meta.

    Where it replaces several nodes, it belongs to the innermost module that held all of them; viewers of graphs
    (Model Explorer, Netron, tlparse) then draw an MLP's op in the MLP.
    """
    op = zigpass_op(name)
    with graph.inserting_before(before):
        node = graph.create_node("call_function", op, args, name=name)
    node.meta = {key: value for key, value in like.meta.items() if key not in META_KEYS}
    set_fake_value(node, call_fake(op, args), like)
    if STACK in like.meta:
        node.meta[STACK] = common_stack([like, *replaced])
    return node


def common_stack(nodes: Sequence[Node]) -> dict[str, Any]:
    """The modules, outermost first, that all of these nodes come from."""
    stacks = [node.meta.get(STACK, {}).items() for node in nodes]
    shared = itertools.takewhile(lambda entries: entries.count(entries[0]) == len(entries), zip(*stacks, strict=False))
    return dict(entries[0] for entries in shared)


def call_fake(op: torch._ops.OpOverload, args: tuple[Any, ...]) -> Any:
    """What an op returns for the fake values of its arguments; no data is read."""
    values = map_arg(args, fake_value)
    # The mode the graph was traced in; while a backend runs, Dynamo's current mode is another one.
    fakes = [value for value in pytree.tree_leaves(values) if isinstance(value, FakeTensor)]
    modes = {id(fake.fake_mode): fake.fake_mode for fake in fakes}
    if len(modes) == 1:
        with next(iter(modes.values())):
            return op(*values)
    # A trace by hand may have made one mode per constant: describe all of them in one.
    with FakeTensorMode():
        return op(*pytree.tree_map_only(torch.Tensor, _describe, values))


def _describe(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def erase_nodes(graph: Graph, nodes: Iterable[Node]) -> None:
    """Erase nodes that nothing uses any more, last first.

    Only the nodes of a match are ever erased. `Graph.eliminate_dead_code` must not be used on these graphs: it takes
    in-place method calls for pure and deletes the writes into the KV cache.
    """
    for node in sorted(nodes, reverse=True):
        graph.erase_node(node)


def move_constants_before(place: Node, nodes: Sequence[Node]) -> Node | None:
    """Make sure that `nodes` come before `place`, moving attribute reads; return the first one that cannot move."""
    for node in nodes:
        if node < place:
            continue
        if node.op != "get_attr":
            return node
        place.prepend(node)
    return None
