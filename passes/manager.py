"""The passes in order, and running them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from .collect_linears import collect_linears
from .context import Context
from .count_linears import count_linears
from .errors import PassError
from .fuse_gated_mlp import fuse_gated_mlp
from .fuse_qkv import fuse_qkv
from .op_table import canonical
from .values import fake_value
from .verify_graph import verify_graph


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass: `run(gm, context)` changes the graph and returns how often it did what it is for.

    `optional` ones may be left out (`Context.skip`); the graph stays right, only less is fused.
    """

    run: Callable[[GraphModule, Context], int]
    optional: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


PASSES: Final[tuple[Pass, ...]] = (
    Pass(collect_linears),
    Pass(fuse_gated_mlp, optional=True),
    Pass(fuse_qkv, optional=True),
    Pass(count_linears),
    Pass(verify_graph),
)
"""All passes in the order they run. An MLP takes its gate and up before `fuse_qkv` groups what is left."""

OPTIONAL_PASSES: Final[tuple[str, ...]] = tuple(item.name for item in PASSES if item.optional)


def run(gm: GraphModule, context: Context | None = None, example_inputs: Sequence[object] | None = None) -> Context:
    """Run all passes over one graph, in place.

    Args:
        gm: a graph from Dynamo, from `torch.export`, or traced by hand.
        context: settings; a default one is made when it is missing. Use a new one for every graph.
        example_inputs: needed for a graph without shapes on its nodes (`torch.fx.symbolic_trace`).

    Returns:
        The context, with matches, near misses and counts.

    Raises:
        PassError: the graph carries no shapes, or a pass produced a wrong graph.
    """
    context = Context() if context is None else context
    _require_shapes(gm, example_inputs)
    for item in PASSES:
        if item.name not in context.skip:
            context.counts[item.name] = item.run(gm, context)
    gm.recompile()
    return context


def _require_shapes(gm: GraphModule, example_inputs: Sequence[object] | None) -> None:
    unknown = [node for node in gm.graph.nodes if canonical(node) == "packed_linear" and fake_value(node) is None]
    if unknown and example_inputs is None:
        raise PassError(f"{unknown[0].name} has no shape: pass example_inputs for a graph that was traced without them")
    if unknown and example_inputs is not None:
        FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*example_inputs)
