"""Let one query token attend to grouped key and value heads without repeating them.

    k [B, H/R, S, D] -> expand -> reshape [B, H, S, D]            k, v as they are
    v likewise         (a copy R times as large)          ->
    attention(q, k', v')                                          attention(q, k, v, enable_gqa=True)

Hugging Face repeats the heads of the cache whenever the model is compiled with a mask, so that every step copies the
whole cache. Measured, one token against 1024, torch.compile, microseconds a layer on an H200: 32 query and 8 key heads
19.3 -> 9.4, 64 and 8 heads 26.2 -> 9.6. (Heads packed as query rows, the other way to share them: 27.3 and 27.4.) A
decode step of eight layers of Llama-3-8B there: 892 -> 678. One thread of a CPU, float32, 32 and 8 heads: 19,700 ->
1,600.

With more query tokens torch would leave its fused kernels for this form, so it is for one token only.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import GraphModule, Node

from .context import Context
from .mutation import find_write_between
from .op_table import argument, canonical
from .rewrite import call_fake, erase_nodes
from .values import META_KEYS, fixed_shape, set_fake_value

ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
"""Of scaled_dot_product_attention, by position; what would come next is `enable_gqa`."""


def share_kv_heads(gm: GraphModule, context: Context) -> int:
    """Rewrite every attention of one token over repeated heads; return how many there were."""
    count = 0
    for node in list(gm.graph.nodes):
        repeated = _match(node) if canonical(node) == "attention" else None
        if repeated is not None:
            _rewrite(gm, node, repeated)
            count += 1
    return count


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """Heads that were repeated.

    Attributes:
        source: [B, groups, 1, S, D].
        expand, reshape: the two nodes that repeat it.
        sizes: of the expanded value, (B, groups, repeats, S, D).
    """

    source: Node
    expand: Node
    reshape: Node
    sizes: tuple[int, ...]


def _match(node: Node) -> tuple[_Repeated, _Repeated] | None:
    """The repeated keys and values of an attention that may share them instead."""
    query, key, value = (argument(node, at, name) for at, name in enumerate(("query", "key", "value")))
    keys, values = _repeated(key), _repeated(value)
    if keys is None or values is None or keys.sizes != values.sizes:
        return None
    batch, groups, repeats, _, depth = keys.sizes
    if fixed_shape(query) != (batch, groups * repeats, 1, depth) or len(node.args) > len(ARGUMENTS):
        return None
    if any(find_write_between(part.reshape, node, [part.source]) for part in (keys, values)):
        return None
    return keys, values


def _repeated(node: object) -> _Repeated | None:
    if not isinstance(node, Node) or canonical(node) != "reshape":
        return None
    expand = node.args[0]
    if not isinstance(expand, Node) or canonical(expand) != "expand" or not isinstance(expand.args[0], Node):
        return None
    source = expand.args[0]
    before, after, heads = fixed_shape(source), fixed_shape(expand), fixed_shape(node)
    if before is None or after is None or len(before) != 5 or len(after) != 5:
        return None
    batch, groups, repeats, length, depth = after
    if before != (batch, groups, 1, length, depth) or heads != (batch, groups * repeats, length, depth):
        return None
    return _Repeated(source, expand, node, after)


def _rewrite(gm: GraphModule, node: Node, repeated: tuple[_Repeated, _Repeated]) -> None:
    for part in repeated:
        node.replace_input_with(part.reshape, _unrepeated(gm, node, part.source))
        for unused in (part.reshape, part.expand):
            if not unused.users:
                erase_nodes(gm.graph, [unused])
    node.kwargs = {**node.kwargs, "enable_gqa": True}


def _unrepeated(gm: GraphModule, before: Node, source: Node) -> Node:
    """[B, groups, 1, S, D] without the dimension that would have been repeated."""
    args = (source, 2)
    op = torch.ops.aten.squeeze.dim
    with gm.graph.inserting_before(before):
        node = gm.graph.call_function(op, args)
    node.meta = {key: value for key, value in before.meta.items() if key not in META_KEYS}
    set_fake_value(node, call_fake(op, args), before)
    return node
