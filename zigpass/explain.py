"""`zigpass.explain(model, example)`: what is fused when the model is compiled, what is not, and why."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import nn

from zigpass import passes
from zigpass.passes import Context, Match, NearMiss
from zigpass.runtime import ZigpassError

from .explain_report import Report
from .linear import ZigzagLinear
from .rewrite_graph import rewrite_graph

if TYPE_CHECKING:
    from .capture import Capture, CapturedGraph


def explain(model: nn.Module, *example_args: Any, sparsity: float | None = None, **example_kwargs: Any) -> Report:
    """Capture the graphs of one call and report on every linear layer of the model.

    Nothing is compiled and, unless the call has graph breaks, nothing is run. Give the arguments of one decoding
    step (one token) to see what decoding gets; with a longer prompt the report says both what runs now (dense) and
    what one token would get.

    Args:
        model: prepared or not, compiled or not.
        example_args, example_kwargs: what the model is called with.
        sparsity: the share of inactive input entries to count bytes for; None takes the target that the model's
            thresholds were calibrated for.

    Returns:
        A report; `print` it, or use its fields, `to_dict()` or `to_json()`.

    Raises:
        ZigpassError: `sparsity` is not in [0, 1).
    """
    from .capture import capture  # brings in Dynamo, which takes a second to import

    if sparsity is not None and not 0 <= sparsity < 1:
        raise ZigpassError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    model = getattr(model, "_orig_mod", model)
    return report_on(model, capture(model, example_args, example_kwargs), sparsity)


def report_on(model: nn.Module, captured: Capture, sparsity: float | None = None) -> Report:
    """As `explain`, for a call that is captured already; its graphs are left as they are."""
    from .explain_rows import find_rows  # brings in the recognizers of all representations

    findings = Findings(_owners(model))
    for graph in captured.graphs:
        findings.add(graph)
    return Report(
        rows=find_rows(model, findings, sparsity),
        matches=findings.matches,
        at_decode=findings.at_decode,
        near_misses=list(dict.fromkeys(findings.near_misses)),
        graph_breaks=captured.breaks,
        num_graphs=len(captured.graphs),
    )


@dataclasses.dataclass(frozen=True)
class LooseLinear:
    """A linear of a graph whose weight belongs to a module that is not a linear, such as a router.

    `representation` is what the graph dequantizes it from; None for a float weight.
    """

    n: int
    k: int
    num_bytes: int
    representation: str | None


class Findings:
    """What the passes find in all graphs, with the names that the layers have in the model."""

    def __init__(self, owners: dict[int, str]) -> None:
        self.owners = owners
        self.matches: list[Match] = []
        self.at_decode: list[Match] = []
        self.near_misses: list[NearMiss] = []
        self.rows_of: dict[str, int | None] = {}
        self.loose: dict[str, LooseLinear] = {}

    def add(self, graph: CapturedGraph) -> None:
        if_one_row = passes.clone_graph_module(graph.gm)
        for context in rewrite_graph(passes.clone_graph_module(graph.gm)):
            self.matches += [self._renamed(match, graph) for match in context.matches]
            self._note_rows(context, graph)
        for context in rewrite_graph(if_one_row, any_rows=True):
            self.at_decode += [self._renamed(match, graph) for match in context.matches]
            self.near_misses += [self._renamed(near_miss, graph) for near_miss in context.near_misses]

    def _note_rows(self, context: Context, graph: CapturedGraph) -> None:
        for linear in context.dense:
            self.rows_of[self._name(linear.weight[0].name, linear.module, graph)] = linear.rows
        for linear in context.float_linears:
            name = self._name(linear.weight[0].name, linear.module, graph)
            self.rows_of.setdefault(name, linear.rows)
            leaf = None if linear.leaf is None else linear.leaf.representation
            self.loose.setdefault(name, LooseLinear(linear.n, linear.k, linear.num_bytes, leaf))

    def _renamed(self, found: Any, graph: CapturedGraph) -> Any:
        pairs = zip(found.weights, found.modules, strict=True)
        return dataclasses.replace(found, modules=tuple(self._name(*pair, graph) for pair in pairs))

    def _name(self, weight: str, module: str, graph: CapturedGraph) -> str:
        """After a graph break the graph knows a layer only relative to where it starts; its weight knows better."""
        return self.owners.get(id(graph.tensors.get(weight)), module)


def _owners(model: nn.Module) -> dict[int, str]:
    """Module names by the identity of their weight tensor, linears before what shares a weight with them."""
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, ZigzagLinear):
            names[id(module.codes)] = name
        elif isinstance(weight := module._parameters.get("weight"), nn.Parameter) and not isinstance(
            module, nn.Embedding
        ):
            names[id(weight)] = name
    return names
