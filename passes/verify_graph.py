"""Check the rewritten graph: it is well formed, and every fused node gives what the nodes it replaced gave."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from .context import Context, Fusion
from .errors import PassError
from .values import fake_value


def verify_graph(gm: GraphModule, context: Context) -> int:
    """Lint the graph and compare shape, dtype and device of every fusion; return the number compared.

    Raises:
        PassError: a fused node differs from what it replaced. This is a bug in a pass, never in the user's model.
    """
    gm.graph.lint()
    for fusion in context.fusions:
        _verify_fusion(fusion)
    return len(context.fusions)


def _verify_fusion(fusion: Fusion) -> None:
    value = fake_value(fusion.node)
    values = value if isinstance(value, (list, tuple)) else [value]
    if len(values) != len(fusion.replaced):
        raise PassError(f"{fusion.node.name} gives {len(values)} results for {len(fusion.replaced)} replaced nodes")
    for result, expected in zip(values, fusion.replaced, strict=True):
        found, wanted = _describe(result), _describe(expected)
        if found != wanted:
            raise PassError(f"{fusion.node.name} gives {found}, the nodes it replaced gave {wanted}")


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} {tuple(value.shape)} on {value.device}"
