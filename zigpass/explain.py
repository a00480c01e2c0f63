"""`zigpass.explain(model, example)`: what is fused when the model is compiled, what is not, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn

from zigpass import passes
from zigpass.passes import Context, Match, NearMiss

from .explain_report import LinearRow, Report
from .linear import ZigzagLinear
from .rewrite_graph import rewrite_graph

if TYPE_CHECKING:
    from .capture import CapturedGraph


def explain(model: nn.Module, *example_args: Any, **example_kwargs: Any) -> Report:
    """Capture the graphs of one call and report on every linear layer of the model.

    Nothing is compiled and, unless the call has graph breaks, nothing is run. Give the arguments of one decoding
    step (one token) to see what decoding gets; with a longer prompt the report says both what runs now (dense) and
    what one token would get.

    Args:
        model: prepared or not, compiled or not.
        example_args, example_kwargs: what the model is called with.

    Returns:
        A report; `print` it, or use its fields, `to_dict()` or `to_json()`.
    """
    from .capture import capture  # brings in Dynamo, which takes a second to import

    model = getattr(model, "_orig_mod", model)
    captured = capture(model, example_args, example_kwargs)
    findings = _Findings(_owners(model))
    for graph in captured.graphs:
        findings.add(graph)
    rows = [_row(name, module, findings) for name, module in model.named_modules() if _is_linear(module)]
    return Report(
        rows=rows,
        matches=findings.matches,
        at_decode=findings.at_decode,
        near_misses=list(dict.fromkeys(findings.near_misses)),
        graph_breaks=captured.breaks,
        num_graphs=len(captured.graphs),
    )


class _Findings:
    """What the passes find in all graphs, with the names that the layers have in the model."""

    def __init__(self, owners: dict[int, str]) -> None:
        self.owners = owners
        self.matches: list[Match] = []
        self.at_decode: list[Match] = []
        self.near_misses: list[NearMiss] = []
        self.rows_of: dict[str, int | None] = {}

    def add(self, graph: CapturedGraph) -> None:
        if_one_row = passes.clone_graph_module(graph.gm)
        for context in rewrite_graph(graph.gm):
            self.matches += [self._renamed(match, graph) for match in context.matches]
            self._note_rows(context, graph)
        for context in rewrite_graph(if_one_row, any_rows=True):
            self.at_decode += [self._renamed(match, graph) for match in context.matches]
            self.near_misses += [self._renamed(near_miss, graph) for near_miss in context.near_misses]

    def _note_rows(self, context: Context, graph: CapturedGraph) -> None:
        for linear in context.dense:
            self.rows_of[self._name(linear.weight[0].name, linear.module, graph)] = linear.rows
        for linear in context.float_linears:
            self.rows_of.setdefault(self._name(linear.weight[0].name, linear.module, graph), linear.rows)

    def _renamed(self, found: Any, graph: CapturedGraph) -> Any:
        pairs = zip(found.weights, found.modules, strict=True)
        return dataclasses.replace(found, modules=tuple(self._name(*pair, graph) for pair in pairs))

    def _name(self, weight: str, module: str, graph: CapturedGraph) -> str:
        """After a graph break the graph knows a layer only relative to where it starts; its weight knows better."""
        return self.owners.get(id(graph.tensors.get(weight)), module)


def _owners(model: nn.Module) -> dict[int, str]:
    """Module names by the identity of their weight tensor."""
    return {id(_weight(module)): name for name, module in model.named_modules() if _is_linear(module)}


def _weight(module: nn.Module) -> Any:
    return module.codes if isinstance(module, ZigzagLinear) else module.weight


def _is_linear(module: nn.Module) -> bool:
    """Packed linears, torch's own, and transformers' Conv1D (a linear with its weight transposed)."""
    return isinstance(module, (ZigzagLinear, nn.Linear)) or type(module).__name__ == "Conv1D"


def _row(name: str, module: nn.Module, findings: _Findings) -> LinearRow:
    reasons = [near_miss.reason for near_miss in findings.near_misses if name in near_miss.modules]
    note = "; ".join(dict.fromkeys(reasons))
    if not isinstance(module, ZigzagLinear):
        n, k = _float_shape(module)
        tensor = _weight(module)
        return LinearRow(name, "float", n, k, tensor.numel() * tensor.element_size(), note or "not quantized")
    kinds = [match.kind for match in findings.matches if name in match.modules]
    at_decode = [match.kind for match in findings.at_decode if name in match.modules]
    if kinds:
        kind = Counter(kinds).most_common(1)[0][0]
    elif at_decode:
        kind = "dense"
        rows = findings.rows_of.get(name)
        now = f"{rows} rows: runs dense" if rows is not None else "number of rows not fixed: runs dense"
        note = "; ".join(filter(None, [f"{now}, {at_decode[0]} when decoding one token", note]))
    else:
        kind = "unused"
        note = note or "not part of any captured graph"
    return LinearRow(name, kind, module.out_features, module.in_features, module.packed.num_bytes, note)


def _float_shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    k, n = _weight(module).shape
    return int(n), int(k)
