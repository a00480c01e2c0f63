"""What the passes are told and what they report: one `Context` per graph."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule, Node

if TYPE_CHECKING:
    from .weight_leaves import WeightLeaf


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """One linear layer of a graph: y = W x + bias.

    Attributes:
        node: the call.
        x: its input.
        packed: whether it is `zigpass.linear`; otherwise it is a float linear, which is only reported.
        weight: the packed tensors, or the float weight.
        bias, threshold, layout: as the op takes them; None for what it does not have.
        n, k: out_features and in_features.
        rows: rows of x, an int when the graph fixes it, None when it is symbolic or unknown.
        module: qualified name of the layer, for people.
        num_bytes: bytes of the weight's tensors.
        leaf: where the graph holds the weight quantized and dequantizes it itself.
    """

    node: Node
    x: Node
    packed: bool
    weight: tuple[Node, ...]
    bias: Node | None
    threshold: Node | None
    layout: str | None
    n: int
    k: int
    rows: int | None
    module: str
    num_bytes: int
    leaf: WeightLeaf | None = None

    @property
    def inputs(self) -> list[Node]:
        """Everything the call reads."""
        return [self.x, *self.weight, *(node for node in (self.bias, self.threshold) if node is not None)]


@dataclasses.dataclass(frozen=True)
class Match:
    """One place where a zigpass op runs.

    Attributes:
        kind: "gated_mlp", "mlp" (two matrices), "qkv", "linear" or "dense_linear" (packed, without a threshold).
        modules: the linears it covers.
        shapes: (N, K) of each.
        num_bytes: packed bytes of all of them.
        activation: of the MLPs.
        weights: the graph node that holds the codes of each linear.
        thresholds: the graph nodes that hold its thresholds, one for each site.
        nodes: the nodes that it was in the graph before.
    """

    kind: str
    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    num_bytes: int
    weights: tuple[str, ...]
    activation: str | None = None
    thresholds: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    @staticmethod
    def of(kind: str, linears: Sequence[Linear], activation: str | None = None, interior: Sequence[Node] = ()) -> Match:
        """A match of these linears; `interior` are the other nodes that a fusion takes with them."""
        thresholds = [linear.threshold.name for linear in linears if linear.threshold is not None]
        nodes = sorted({*interior, *(linear.node for linear in linears)})
        return Match(
            kind=kind,
            modules=tuple(linear.module for linear in linears),
            shapes=tuple((linear.n, linear.k) for linear in linears),
            num_bytes=sum(linear.num_bytes for linear in linears),
            weights=tuple(linear.weight[0].name for linear in linears),
            activation=activation,
            thresholds=tuple(dict.fromkeys(thresholds)),
            nodes=tuple(node.name for node in nodes),
        )


@dataclasses.dataclass(frozen=True)
class NearMiss:
    """A place that looks like a pattern but cannot be fused, and the sentence that says why.

    `weights` and `nodes` are names in the graph: what holds the weight of each linear, and the linears.
    """

    kind: str
    modules: tuple[str, ...]
    reason: str
    weights: tuple[str, ...]
    nodes: tuple[str, ...] = ()

    @staticmethod
    def of(kind: str, linears: Sequence[Linear], reason: str) -> NearMiss:
        return NearMiss(
            kind=kind,
            modules=tuple(item.module for item in linears),
            reason=reason,
            weights=tuple(item.weight[0].name for item in linears),
            nodes=tuple(item.node.name for item in linears),
        )


@dataclasses.dataclass(frozen=True)
class Fusion:
    """A fused node and the fake values of the nodes it replaced; `verify_graph` compares them."""

    node: Node
    replaced: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class PackedLeaf:
    """The nodes of the packed tensors of a weight, in the order the op takes them, and its layout."""

    tensors: tuple[Node, ...]
    layout: str


Observer = Callable[[GraphModule, "Context", "str | None"], None]
"""Looks at a graph before the first pass (None) and after each pass (its name), for tools that show it."""

Packer = Callable[[GraphModule, "Linear"], "PackedLeaf | str"]
"""Gives a graph the packed tensors of a linear's `WeightLeaf`, or says in a sentence why it does not."""


@dataclasses.dataclass
class Context:
    """Settings for one run of the passes over one graph, and what they found.

    Attributes:
        skip: names of optional passes to leave out.
        any_rows: fuse also where the rows are not known to be one. The ops are right for any number of rows (they
            run dense for more than one), so this is for exported graphs with dynamic shapes, and for reports.
        packer: packs the weights that the graph dequantizes itself; None leaves them as they are and says so.
        observe: looks at the graph between the passes.
        linears: all linears of the graph by node, packed or not; filled by `collect_linears`.
        matches, near_misses: what the passes found, in graph order of their last linear.
        dense: packed linears left as they are because their rows are not one.
        fusions: for `verify_graph`.
        counts: what each pass returned.
        seconds: how long each pass took.
    """

    skip: frozenset[str] = frozenset()
    any_rows: bool = False
    packer: Packer | None = None
    observe: Observer | None = None
    linears: dict[Node, Linear] = dataclasses.field(default_factory=dict)
    matches: list[Match] = dataclasses.field(default_factory=list)
    near_misses: list[NearMiss] = dataclasses.field(default_factory=list)
    dense: list[Linear] = dataclasses.field(default_factory=list)
    fusions: list[Fusion] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def packed_linears(self) -> list[Linear]:
        return [linear for linear in self.linears.values() if linear.packed]

    @property
    def float_linears(self) -> list[Linear]:
        return [linear for linear in self.linears.values() if not linear.packed]

    @property
    def kinds(self) -> Counter[str]:
        """Matches by kind."""
        return Counter(match.kind for match in self.matches)

    @property
    def packed_bytes(self) -> int:
        """Weight bytes that the matched linears hold."""
        return sum(match.num_bytes for match in self.matches)

    def wants(self, linear: Linear) -> bool:
        """Whether this linear reads one row, so that a sparse op is worth it."""
        return self.any_rows or linear.rows == 1

    def replace(self, linear: Linear, new: Node) -> None:
        """Let everything that used a linear's result use `new`, and forget the linear."""
        old = linear.node
        old.replace_all_uses_with(new)
        del self.linears[old]
        for node, other in self.linears.items():
            if other.x is old:
                self.linears[node] = dataclasses.replace(other, x=new)

    def refuse(self, kind: str, linears: Sequence[Linear], reason: str) -> None:
        self.near_misses.append(NearMiss.of(kind, linears, reason))
