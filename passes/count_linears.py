"""Count the packed linears that no fusion took: each is an op by itself (o, a fused qkv, a lone down, the head)."""

from __future__ import annotations

from torch.fx import GraphModule

from .context import Context, Match


def count_linears(gm: GraphModule, context: Context) -> int:
    """Report every remaining packed linear that reads one row as a match; the graph stays as it is.

    The kind is "linear", or "dense_linear" for one without a threshold, such as an output head. Those with more rows,
    or an unknown number, are noted in `context.dense`: they are right and run dense.
    """
    context.dense.clear()
    count = 0
    for linear in context.packed_linears:
        if context.wants(linear):
            context.matches.append(Match.of("linear" if linear.threshold is not None else "dense_linear", [linear]))
            count += 1
        else:
            context.dense.append(linear)
    return count
