"""Small modules with packed linears, and running the passes over their graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from zigpass import passes
from zigpass.config import ZigzagConfig
from zigpass.passes import Context
from zigpass.quantize import quantize_
from zigpass.sites import find_sites

HIDDEN, MIDDLE = 64, 96


class Block(nn.Module):
    """Linears with the usual names and a forward given by the test as `body(self, x)`."""

    def __init__(self, body: Callable[[Any, Tensor], Any], bias: bool = False, **sizes: tuple[int, int]) -> None:
        super().__init__()
        self.body = body
        default = {"gate_proj": (HIDDEN, MIDDLE), "up_proj": (HIDDEN, MIDDLE), "down_proj": (MIDDLE, HIDDEN)}
        for name, (k, n) in {**default, **sizes}.items():
            setattr(self, name, nn.Linear(k, n, bias))

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def packed_block(
    body: Callable[[Any, Tensor], Any], bias: bool = False, threshold: float = 0.3, **sizes: tuple[int, int]
) -> Any:
    """A quantized `Block` in eval mode, every site at one threshold."""
    torch.manual_seed(0)
    block = quantize_(Block(body, bias, **sizes).eval(), ZigzagConfig(group_size=32), progress=False)
    for site in find_sites(block).values():
        site.set_threshold(threshold)
    return block


def one_row(features: int = HIDDEN, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 1, features, generator=torch.Generator().manual_seed(1)).to(dtype)


def capture(model: nn.Module, *args: Any, **kwargs: Any) -> GraphModule:
    """A copy of the one graph that Dynamo makes of a call."""
    graphs: list[GraphModule] = []

    def backend(gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(passes.clone_graph_module(gm))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(*args, **kwargs)
    (graph,) = graphs
    return graph


def run_passes(model: nn.Module, *args: Any, **settings: Any) -> tuple[GraphModule, Context]:
    """Capture a call and run the passes over its graph."""
    gm = capture(model, *args)
    return gm, passes.run(gm, Context(**settings))


def run_rewritten(model: nn.Module, *args: Any) -> tuple[Any, Context]:
    """Call a model through its rewritten graph; what it returns and what the passes found."""
    contexts: list[Context] = []

    def backend(gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        copy = passes.clone_graph_module(gm)
        contexts.append(passes.run(copy))
        return copy.forward

    torch._dynamo.reset()
    with torch.no_grad():
        out = torch.compile(model, backend=backend, fullgraph=True)(*args)
    (context,) = contexts
    return out, context


def count_ops(gm: GraphModule, name: str) -> int:
    """Calls of `zigpass.<name>` in a graph."""
    return sum(str(node.target) == f"zigpass.{name}.default" for node in gm.graph.nodes)


def reasons(context: Context) -> list[str]:
    return [near_miss.reason for near_miss in context.near_misses]
