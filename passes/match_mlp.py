"""Find the MLP that ends in a given down projection, by walking back from it.

`find_mlp` says what the structure is, without judging it: `check_mlp` decides whether it may be fused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch.fx import Node

from .activations import Activation, find_activation, take_apart
from .context import Linear


@dataclasses.dataclass(frozen=True)
class Mlp:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) when there is no gate.

    `interior` are the nodes a fusion removes besides `down`: the other linears and everything between.
    """

    activation: str
    gate: Linear | None
    up: Linear
    down: Linear
    interior: tuple[Node, ...]

    @property
    def linears(self) -> list[Linear]:
        return [linear for linear in (self.gate, self.up, self.down) if linear is not None]

    @property
    def kind(self) -> str:
        return "gated_mlp" if self.gate else "mlp"


def find_mlp(down: Linear, linears: Mapping[Node, Linear]) -> Mlp | None:
    """The MLP whose last layer is `down`, if its middle is a product of the known form."""
    middle = take_apart(down.x)
    activation = find_activation(middle)
    if activation is not None and activation.input in linears:
        return _mlp(activation, None, linears[activation.input], down)
    for factor in dict.fromkeys(middle.factors):
        activation = find_activation(middle.without(factor)) if factor in linears else None
        if activation is not None and activation.input in linears:
            return _mlp(activation, linears[activation.input], linears[factor], down)
    return None


def _mlp(activation: Activation, gate: Linear | None, up: Linear, down: Linear) -> Mlp:
    first = [gate.node] if gate else []
    interior = dict.fromkeys([*first, up.node, *activation.nodes])
    return Mlp(activation.name, gate, up, down, tuple(interior))
