"""Fuse gate, up, activation and down into one `zigpass.gated_mlp`.

    gate = zigpass.linear(x, ...)                 out = zigpass.gated_mlp(x, gate..., up..., down..., "silu")
    up   = zigpass.linear(x, ...)         ->
    out  = zigpass.linear(silu(gate) * up, ...)

MLPs of two matrices, down(act(up(x))), become the same op with an empty gate.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule

from .check_mlp import check_mlp, check_packed
from .context import Context, Fusion, Linear, Match
from .explain_mlp import explain_mlp
from .match_mlp import Mlp, find_mlp
from .rewrite import erase_nodes, insert_op
from .values import fake_value


def fuse_gated_mlp(gm: GraphModule, context: Context) -> int:
    """Fuse every MLP of the graph that reads one row; return how many."""
    count = 0
    for node in list(context.linears):
        # Looked up anew each time: fusing one MLP replaces the input of the next.
        down = context.linears[node]
        mlp = find_mlp(down, context.linears)
        if mlp is None:
            _note_near_miss(down, context)
            continue
        if any(linear.leaf is not None for linear in mlp.linears):
            continue  # `pack_weight_leaves` has said why it is not packed
        # A float MLP is worth a word in a prefill graph too; the other checks wait for the decode graph.
        reason = check_mlp(mlp) if context.wants(down) else check_packed(mlp)
        if reason is not None:
            context.refuse(mlp.kind, mlp.linears, reason)
        elif context.wants(down):
            _fuse(gm, context, mlp)
            count += 1
    return count


def _note_near_miss(down: Linear, context: Context) -> None:
    near_miss = explain_mlp(down, context.linears) if down.packed and context.wants(down) else None
    if near_miss is not None:
        context.refuse("gated_mlp", *near_miss)


def _fuse(gm: GraphModule, context: Context, mlp: Mlp) -> None:
    gate, up, down = mlp.gate, mlp.up, mlp.down
    # Of two equal copies of x the one read first is there for sure.
    x = min(linear.x for linear in (gate, up) if linear is not None)
    args: tuple[Any, ...] = (
        x,
        list(gate.weight) if gate else [],
        list(up.weight),
        list(down.weight),
        gate.bias if gate else None,
        up.bias,
        down.bias,
        up.threshold,
        down.threshold,
        gate.layout if gate else "",
        up.layout,
        down.layout,
        mlp.activation,
    )
    node = insert_op(gm.graph, down.node, "gated_mlp", args, like=down.node, replaced=mlp.interior)
    context.fusions.append(Fusion(node, (fake_value(down.node),)))
    context.matches.append(Match.of(mlp.kind, mlp.linears, mlp.activation, mlp.interior))
    context.replace(down, node)
    erase_nodes(gm.graph, [*mlp.interior, down.node])
    for linear in mlp.linears[:-1]:
        del context.linears[linear.node]
