"""What every pass did to every graph of a model: counts, times, and the graph before and after."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from zigpass import passes
from zigpass.passes import Context, Linear, Match
from zigpass.runtime import Layout

from .bytes_read import bytes_read
from .explain import report_on
from .explain_report import LinearRow, Report
from .explain_rows import describe_layout
from .graph_text import Line, as_code, describe, graph_lines, tensor_names
from .rewrite_graph import rewrite_graph
from .sites import find_sites

CONTEXT_LINES = 2
"""Unchanged lines around a change in a diff."""


@dataclasses.dataclass(frozen=True)
class Region:
    """The nodes of one match or near miss.

    Attributes:
        kind, modules: as of the match.
        reason: why it is none; empty for a match.
        before, after: names of its nodes in the graph as it was captured, and at the end.
    """

    kind: str
    modules: tuple[str, ...]
    reason: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PassStep:
    """One pass over one graph.

    Attributes:
        number: of the step, from 1.
        graph: which graph, from 1.
        name: of the pass.
        summary: what the pass is for.
        count: how often it did that.
        seconds: how long it took.
        before, after: the graph.
        regions: what this pass found, matches first.
    """

    number: int
    graph: int
    name: str
    summary: str
    count: int
    seconds: float
    before: list[Line]
    after: list[Line]
    regions: list[Region]

    @property
    def near_misses(self) -> list[Region]:
        return [region for region in self.regions if region.reason]

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def diff(self) -> list[str]:
        """The lines of a unified diff; empty when the pass changed nothing."""
        if not self.changed:
            return []
        names = (f"graph {self.graph} before {self.name}", f"graph {self.graph} after {self.name}")
        return list(
            difflib.unified_diff(as_code(self.before), as_code(self.after), *names, lineterm="", n=CONTEXT_LINES)
        )


class StepRecorder:
    """Observes the passes over one graph or several.

    Attributes:
        steps: what happened so far.
        names: names of weights and constants by placeholder, of the graph that is rewritten next.
    """

    def __init__(self) -> None:
        self.steps: list[PassStep] = []
        self.names: Mapping[str, str] = {}
        self._graphs: list[GraphModule] = []
        self._before: list[Line] = []
        self._seen: tuple[int, int] = (0, 0)

    def __call__(self, gm: GraphModule, context: Context, name: str | None) -> None:
        lines = graph_lines(gm, tensor_names(gm, self.names))
        if name is None:
            self._graphs.append(gm)
            self._before, self._seen = lines, (0, 0)
            return
        matches, near_misses = self._seen
        step = PassStep(
            number=len(self.steps) + 1,
            graph=len(self._graphs),
            name=name,
            summary=summary_of(name),
            count=context.counts[name],
            seconds=context.seconds[name],
            before=self._before,
            after=lines,
            regions=[
                *(match_region(gm, match) for match in context.matches[matches:]),
                *(
                    Region(miss.kind, miss.modules, miss.reason, miss.nodes, miss.nodes)
                    for miss in context.near_misses[near_misses:]
                ),
            ],
        )
        self.steps.append(step)
        self._before, self._seen = lines, (len(context.matches), len(context.near_misses))


def match_region(gm: GraphModule, match: Match) -> Region:
    """A match with the nodes that it is in the rewritten graph: what reads its weights, and the parts of the result."""
    held = [node for node in gm.graph.nodes if node.name in match.weights]
    users = [user for node in held for user in node.users]
    parts = [part for user in users for part in user.users if part.target is operator.getitem]
    return Region(match.kind, match.modules, "", match.nodes, tuple(dict.fromkeys(n.name for n in [*users, *parts])))


def summary_of(name: str) -> str:
    """The first sentence that a pass says about itself: one of ours at the head of its file."""
    item = next(item for item in passes.PASSES if item.name == name)
    document = inspect.getdoc(item.run if item.registered else inspect.getmodule(item.run)) or ""
    return document.split("\n\n")[0].replace("\n", " ").strip()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What the passes did to one model or program.

    Attributes:
        steps: every pass over every graph, in the order they ran.
        report: on every linear of the model.
    """

    steps: list[PassStep]
    report: Report


def inspect_model(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    sparsity: float | None = None,
    skip: frozenset[str] = frozenset(),
) -> Inspection:
    """Capture one call of a model, run the passes over its graphs as the backend would, and keep every step.

    Args:
        sparsity: share of inactive entries to count bytes for; None takes the targets of the model's thresholds.
        skip: optional passes to leave out.
    """
    from .capture import capture  # brings in Dynamo

    captured = capture(model, args, kwargs)
    report = report_on(model, captured, sparsity)
    owners = tensor_owners(model)
    recorder = StepRecorder()
    for graph in captured.graphs:
        recorder.names = {node: owners[id(tensor)] for node, tensor in graph.tensors.items() if id(tensor) in owners}
        rewrite_graph(graph.gm, skip, observe=recorder)
    return Inspection(recorder.steps, report)


def tensor_owners(model: nn.Module) -> dict[int, str]:
    """Names of a model's parameters, buffers and thresholds by the identity of the tensor."""
    owners = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    owners.update({id(site.threshold): f"{name}.threshold" for name, site in find_sites(model).items()})
    return owners


def inspect_program(
    program: ExportedProgram,
    *,
    sparsity: float | None = None,
    skip: frozenset[str] = frozenset(),
    any_rows: bool = False,
) -> Inspection:
    """As `inspect_model`, for what `torch.export` returns; the program is rewritten in place.

    Args:
        sparsity: share of inactive entries; a program does not say which its thresholds were chosen for.
        any_rows: fuse also where the number of rows is not one or not fixed.
    """
    recorder = StepRecorder()
    recorder.names = program_names(program)
    linears = Context()
    passes.collect_linears(program.graph_module, linears)
    context = passes.run(program, Context(skip=skip, any_rows=any_rows, observe=recorder))
    rows = [_program_row(linear, context, recorder.names, sparsity) for linear in linears.linears.values()]
    report = Report(rows, context.matches, context.matches, context.near_misses, [], 1)
    return Inspection(recorder.steps, report)


def program_names(program: ExportedProgram) -> dict[str, str]:
    """Names of the parameters, buffers and constants of a program by the name of their placeholder."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def _program_row(linear: Linear, context: Context, names: Mapping[str, str], sparsity: float | None) -> LinearRow:
    """A row of the report from what the graph alone knows."""
    kinds = [match.kind for match in context.matches if linear.weight[0].name in match.weights]
    reasons = [miss.reason for miss in context.near_misses if linear.weight[0].name in miss.weights]
    layout = Layout.parse(linear.layout) if linear.layout else None
    site = names.get(linear.threshold.name, linear.threshold.name) if linear.threshold is not None else ""
    active: float | None = linear.num_bytes
    if layout is not None and linear.threshold is not None:
        sizes = [passes.fake_value(node).nbytes for node in linear.weight]
        active = None if sparsity is None else bytes_read(sizes, layout, sparsity)
    return LinearRow(
        name=linear.module,
        site=site.removesuffix(".threshold"),
        representation=describe_layout(layout) if layout else describe(passes.fake_value(linear.weight[0])),
        kind=kinds[0] if kinds else ("dense" if layout else "float"),
        n=linear.n,
        k=linear.k,
        num_bytes=linear.num_bytes,
        active_bytes=None if active is None else round(active),
        note="; ".join(dict.fromkeys(reasons)),
    )
