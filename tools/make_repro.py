"""A stand-alone script for one matched or refused place of a model: `zigpass make-repro`.

The script holds the nodes of that place and random weights of the same shapes, dtypes and layouts; nothing of the
model itself is in it, so it can go into a bug report.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.fx import Graph, GraphModule, Node

from zigpass import passes
from zigpass.capture import capture
from zigpass.cli import run_script
from zigpass.graph_text import source_names
from zigpass.inspection import Region, StepRecorder
from zigpass.rewrite_graph import rewrite_graph
from zigpass.runtime import Layout, ZigpassError
from zigpass.tools.inspect_passes import Where
from zigpass.tools.inspect_source import ModelSource, load_source
from zigpass.tools.quality_options import Axis, Bits, GroupSize, model_or_demo, quantization

SCRIPT = '''\
"""{headline}

Made by `zigpass make-repro`; weights and inputs are random. Run it with python: it prints what zigpass makes of this
place, and fails where that is not what was seen in the model.
"""

import json

import torch
from torch import device, inf, nan  # noqa: F401  # what the code of a graph may use

import zigpass
from zigpass.tools.env import environment

KIND = {kind!r}
REFUSED = {reason!r}
"""The reason that was given in the model; empty for a match."""
GENERATOR = torch.Generator().manual_seed(0)


def random(shape, dtype, low, high):
    if dtype.is_floating_point:
        return torch.empty(shape).uniform_(low, high, generator=GENERATOR).to(dtype)
    return torch.randint(low, high, shape, dtype=dtype, generator=GENERATOR)


class Place(torch.nn.Module):
    def __init__(self):
        super().__init__()
{buffers}

{forward}

INPUTS = (
{inputs}
)

model = Place().eval()
report = zigpass.explain(model, *INPUTS)
print(json.dumps(environment()))
print("found", dict(report.kinds))
for near_miss in report.near_misses:
    print("near miss:", near_miss.reason)
compiled = torch.compile(model, backend="zigpass", options={{"inner": "eager"}})
with torch.inference_mode():
    pairs = zip(model(*INPUTS), compiled(*INPUTS), strict=True)
    print("largest difference to the eager run:", max(float((one - other).abs().max()) for one, other in pairs))
found = {{near_miss.kind for near_miss in report.near_misses}} if REFUSED else set(report.kinds)
if KIND not in found:
    raise SystemExit(f"this place alone is not what it was in the model: expected {{KIND}}, found {{sorted(found)}}")
print(f"{{KIND}} refused, as in the model: {{REFUSED}}" if REFUSED else f"{{KIND}} matched, as in the model")
'''


@dataclasses.dataclass(frozen=True)
class Tensors:
    """How to make a random tensor: shape, dtype, and a range of values that is meaningful for what it holds."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: float
    high: float

    def code(self) -> str:
        if self.low == self.high:
            return f"torch.full({self.shape}, {self.low}, dtype={self.dtype})"
        return f"random({self.shape}, {self.dtype}, {self.low}, {self.high})"


def make_repro(
    source: Where = None,
    place: Annotated[
        str | None, typer.Option(help="Name of a module in it, such as model.layers.0.mlp; a refused one by default.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The script to write.")] = Path("repro.py"),
    tokens: Annotated[int, typer.Option(help="Tokens of the call that is captured; one is a decoding step.")] = 1,
    bits: Bits = None,
    group_size: GroupSize = 128,
    scale_axis: Axis = "in",
) -> None:
    """Write a stand-alone script for one matched or refused place of a model, for a bug report."""
    console = Console()
    word = source or str(model_or_demo(None, console.print))
    found = load_source(word, quantization(bits, group_size, scale_axis), tokens)
    if not isinstance(found, ModelSource):
        raise ZigpassError(f"{word}: a repro is made of a model; give the model that it was exported from")
    output.write_text(repro_of(found, place), encoding="utf-8")
    console.print(f"wrote {output}; run it with python")


def repro_of(source: ModelSource, place: str | None) -> str:
    """The text of the script.

    Raises:
        ZigpassError: nothing was matched or refused at this place; the message lists the places there are.
    """
    candidates: list[tuple[GraphModule, Region]] = []
    for graph in capture(source.model, source.args, source.kwargs).graphs:
        original = passes.clone_graph_module(graph.gm)
        recorder = StepRecorder()
        rewrite_graph(graph.gm, observe=recorder)
        candidates += [(original, region) for step in recorder.steps for region in step.regions]
    gm, region = choose(candidates, place)
    nodes = between(gm, region.before)
    return script(source.title, region, gm, nodes)


def choose(candidates: Sequence[tuple[GraphModule, Region]], place: str | None) -> tuple[GraphModule, Region]:
    """The refusal, else the match, that covers a linear of this name or below it; the first refusal without a name."""
    ordered = sorted(candidates, key=lambda candidate: not candidate[1].reason)
    for gm, region in ordered:
        if place is None or any(name == place or name.startswith(f"{place}.") for name in region.modules):
            return gm, region
    names = ", ".join(dict.fromkeys(name for _, region in candidates for name in region.modules))
    raise ZigpassError(
        f"nothing was matched or refused at {place or 'any place'}; there is {names or 'no linear layer'}"
    )


def between(gm: GraphModule, names: Iterable[str]) -> list[Node]:
    """The named nodes and every node on a way from one of them to another, in graph order."""
    wanted = set(names)
    after: set[Node] = set()
    for node in gm.graph.nodes:
        if node.name in wanted or any(source in after for source in node.all_input_nodes):
            after.add(node)
    before: set[Node] = set()
    for node in reversed(gm.graph.nodes):
        if node.name in wanted or any(user in before for user in node.users):
            before.add(node)
    return [node for node in gm.graph.nodes if node in after and node in before]


def script(title: str, region: Region, gm: GraphModule, nodes: Sequence[Node]) -> str:
    """The nodes as a module whose weights are buffers and whose other inputs are arguments."""
    outside = list(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in nodes))
    held = weights_of(gm, outside)
    graph, copies = Graph(), {}
    for node in outside:
        if node not in held:
            copies[node] = graph.placeholder(node.name)
    names = {node: f"tensor_{index}" for index, node in enumerate(held)}
    for node, name in names.items():
        copies[node] = graph.get_attr(name)
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in nodes if any(user not in nodes for user in node.users)))
    module = GraphModule({name: torch.empty(0) for name in names.values()}, graph)
    forward = module.code.strip().replace("\n    \n", "\n")
    known = source_names(gm)
    buffers = [
        f'self.register_buffer("{name}", {held[node].code()})  # {known.get(node.name, node.name)}'
        for node, name in names.items()
    ]
    inputs = [f"{random_input(node).code()},  # {node.name}" for node in outside if node not in held]
    verb = "is refused" if region.reason else "matches"
    return SCRIPT.format(
        headline=f"{title}: {', '.join(region.modules)} {verb} as {region.kind}."[:118],
        kind=region.kind,
        reason=region.reason,
        buffers=textwrap.indent("\n".join(buffers) or "pass", " " * 8),
        forward=textwrap.indent(forward, " " * 4),
        inputs=textwrap.indent("\n".join(inputs), " " * 4),
    )


def weights_of(gm: GraphModule, outside: Sequence[Node]) -> dict[Node, Tensors]:
    """Which of the inputs are weights, biases and thresholds of linears, and what random values suit each."""
    context = passes.Context()
    passes.collect_linears(gm, context)
    found: dict[Node, Tensors] = {}
    for linear in context.linears.values():
        for index, node in enumerate(linear.weight):
            found[node] = _packed(node, index, linear.layout) if linear.layout else _tensors(node, -0.1, 0.1)
        if linear.bias is not None:
            found[linear.bias] = _tensors(linear.bias, -0.1, 0.1)
        if linear.threshold is not None:
            found[linear.threshold] = _tensors(linear.threshold, 0.1, 0.1)
    found.update({node: _tensors(node, -0.1, 0.1) for node in outside if node.op == "get_attr" and node not in found})
    return {node: tensors for node, tensors in found.items() if node in outside}


def _packed(node: Node, index: int, spec: str) -> Tensors:
    """A tensor of a packed weight: codes, scales and zeros have any bits; a permutation cannot be made up."""
    layout = Layout.parse(spec)
    if index == 3:
        raise ZigpassError(f"{spec}: act-order weights hold a permutation, which a repro does not make up")
    dtype = passes.fake_value(node).dtype
    if dtype.is_floating_point:
        return _tensors(node, 0.001, 0.01)
    if index == 0 or layout.scale_axis == "out":
        # Scales of the column form are fp16 pairs and 6-bit fields inside words: small ones are finite numbers.
        return _tensors(node, 0, 1 << 12 if index else torch.iinfo(dtype).max)
    return _tensors(node, 0, 1 << layout.bits)


def random_input(node: Node) -> Tensors:
    """An activation."""
    value = passes.fake_value(node)
    if not isinstance(value, torch.Tensor):
        raise ZigpassError(f"{node.name} is a {type(value).__name__}; a repro takes tensors only")
    return _tensors(node, -1.0, 1.0) if value.dtype.is_floating_point else _tensors(node, 0, 2)


def _tensors(node: Node, low: float, high: float) -> Tensors:
    value: Any = passes.fake_value(node)
    return Tensors(tuple(int(size) for size in value.shape), value.dtype, low, high)


if __name__ == "__main__":
    run_script(make_repro)
