"""Run the passes over a graph and its subgraphs, and put what they found into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch.fx import GraphModule

from zigpass import passes
from zigpass.passes import Context, Observer, Packer

KIND_ORDER = ("gated_mlp", "mlp", "qkv", "linear", "dense_linear")


def rewrite_graph(
    gm: GraphModule,
    skip: frozenset[str] = frozenset(),
    any_rows: bool = False,
    packer: Packer | None = None,
    observe: Observer | None = None,
) -> list[Context]:
    """Rewrite a graph in place, innermost subgraphs first; one context per graph, the outermost last.

    The packer adds inputs to a graph, which a subgraph, called from several places, cannot be given.
    """
    contexts: list[Context] = []
    for child in passes.subgraphs(gm).values():
        contexts += rewrite_graph(child, skip, any_rows, observe=observe)
    return [*contexts, passes.run(gm, Context(skip=skip, any_rows=any_rows, packer=packer, observe=observe))]


def count_packed(gm: GraphModule) -> int:
    """Packed linears of a graph and its subgraphs; nothing is changed."""
    return passes.collect_linears(gm, Context()) + sum(map(count_packed, passes.subgraphs(gm).values()))


def count_kinds(contexts: Iterable[Context]) -> Counter[str]:
    """Matches of all graphs by kind."""
    return sum((context.kinds for context in contexts), Counter())


def describe_kinds(kinds: Counter[str]) -> str:
    """ "2 gated_mlp, 2 qkv, 2 linear", kinds that a registered pass made up last."""
    order = dict.fromkeys([*KIND_ORDER, *sorted(kinds)])
    return ", ".join(f"{kinds[kind]} {kind}" for kind in order if kinds[kind]) or "nothing"


def why_nothing(contexts: Iterable[Context]) -> list[str] | None:
    """Why a graph that has linear layers has no packed one; None when there is nothing to complain about.

    A graph without linears is no failure, nor is a prefill graph of a prepared model: its linears run dense.
    """
    contexts = list(contexts)
    if any(context.matches or context.packed_linears for context in contexts):
        return None
    unpacked = [linear for context in contexts for linear in context.float_linears]
    if not unpacked:
        return None
    reasons = [near_miss.reason for context in contexts for near_miss in context.near_misses]
    return reasons or [f"{linear.module} is not quantized" for linear in unpacked]
