"""The passes in order, and running them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Final

from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from .collect_linears import collect_linears
from .context import Context
from .count_linears import count_linears
from .errors import PassError
from .fuse_gated_mlp import fuse_gated_mlp
from .fuse_qkv import fuse_qkv
from .op_table import canonical
from .pack_weight_leaves import pack_weight_leaves
from .share_kv_heads import share_kv_heads
from .values import fake_value
from .verify_graph import verify_graph

PassFunction = Callable[[GraphModule, Context], int]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass: `run(gm, context)` changes the graph and returns how often it did what it is for.

    `optional` ones may be left out (`Context.skip`); the graph stays right, only less is fused. `registered` ones
    were added by a user.
    """

    run: PassFunction
    optional: bool = False
    registered: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


PASSES: Final[list[Pass]] = [
    Pass(collect_linears),
    Pass(pack_weight_leaves, optional=True),
    Pass(fuse_gated_mlp, optional=True),
    Pass(fuse_qkv, optional=True),
    Pass(count_linears),
    Pass(share_kv_heads, optional=True),
    Pass(verify_graph),
]
"""All passes in the order they run. An MLP takes its gate and up before `fuse_qkv` groups what is left."""

OPTIONAL_PASSES: Final[tuple[str, ...]] = tuple(item.name for item in PASSES if item.optional)


def run(
    gm: GraphModule | ExportedProgram,
    context: Context | None = None,
    example_inputs: Sequence[object] | None = None,
) -> Context:
    """Run all passes over one graph, in place.

    Args:
        gm: a graph from Dynamo or traced by hand, or what `torch.export` returns.
        context: settings; a default one is made when it is missing. Use a new one for every graph.
        example_inputs: needed for a graph without shapes on its nodes (`torch.fx.symbolic_trace`).

    Returns:
        The context, with matches, near misses and counts.

    Raises:
        PassError: the graph carries no shapes, or a pass produced a wrong graph.
    """
    context = Context() if context is None else context
    if isinstance(gm, ExportedProgram):
        _run_all(gm.graph_module, context)
        _rename_outputs(gm)
        return context
    _require_shapes(gm, example_inputs)
    _run_all(gm, context)
    return context


def _run_all(gm: GraphModule, context: Context) -> None:
    if context.observe is not None:
        context.observe(gm, context, None)
    for item in PASSES:
        if item.name in context.skip:
            continue
        start = time.perf_counter()
        context.counts[item.name] = item.run(gm, context)
        context.seconds[item.name] = time.perf_counter() - start
        if context.observe is not None:
            context.observe(gm, context, item.name)
    gm.recompile()


def _rename_outputs(program: ExportedProgram) -> None:
    """The signature of a program refers to its outputs by the names of their nodes."""
    (output,) = program.graph.find_nodes(op="output")
    for spec, value in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(value, Node):
            spec.arg.name = value.name


def _require_shapes(gm: GraphModule, example_inputs: Sequence[object] | None) -> None:
    unknown = [node for node in gm.graph.nodes if canonical(node) == "packed_linear" and fake_value(node) is None]
    if unknown and example_inputs is None:
        raise PassError(f"{unknown[0].name} has no shape: pass example_inputs for a graph that was traced without them")
    if unknown and example_inputs is not None:
        FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*example_inputs)
