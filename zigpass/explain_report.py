"""The report that `zigpass.explain` returns: fields, text, a rich table, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

from rich.table import Table

from zigpass.passes import Match, NearMiss

from .rewrite_graph import describe_kinds

COLUMNS = ("layer", "site", "holds", "runs as", "N x K", "MB in 16 bits", "MB", "MB read", "bound", "note")
NOT_PACKED = ("float", "quantized")
"""Kinds of rows whose weights are not in the zigzag layout."""


@dataclasses.dataclass(frozen=True)
class LinearRow:
    """One linear layer of the model.

    Attributes:
        name: its qualified name.
        site: the activation it reads; empty for one that is never sparse.
        representation: what its weight is held in.
        kind: "gated_mlp", "mlp", "qkv" or "linear" (runs sparse, alone or as part of a fused op), "dense_linear"
            (packed, never sparse, such as an output head), "dense" (packed, more than one row), "unused" (packed, not
            called), "quantized" (by another library, not packed) or "float" (not quantized).
        n, k: out_features and in_features.
        num_bytes: bytes of its weight as it is now.
        active_bytes: bytes that decoding one token reads of it; None when the sparsity is not known.
        note: why it is not fused, if there is something to say.
        copies: matrices of this size in it, for experts that share one parameter.
    """

    name: str
    site: str
    representation: str
    kind: str
    n: int
    k: int
    num_bytes: int
    active_bytes: int | None
    note: str
    copies: int = 1

    @property
    def bytes_in_16_bit(self) -> int:
        """Bytes that it would have as bfloat16."""
        return 2 * self.n * self.k * self.copies

    @property
    def bound(self) -> float | None:
        """How many times fewer bytes are read than without sparsity: what a kernel limited by memory can gain."""
        return self.num_bytes / self.active_bytes if self.active_bytes else None

    def cells(self) -> tuple[str, ...]:
        read = "?" if self.active_bytes is None else f"{self.active_bytes / 1e6:.2f}"
        bound = "?" if self.bound is None else f"{self.bound:.2f}x"
        sizes = (f"{self.n} x {self.k}", f"{self.bytes_in_16_bit / 1e6:.2f}", f"{self.num_bytes / 1e6:.2f}")
        return self.name, self.site, self.representation, self.kind, *sizes, read, bound, self.note

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "bytes_in_16_bit": self.bytes_in_16_bit, "bound": self.bound}


@dataclasses.dataclass(frozen=True)
class Report:
    """What compiling a model does to it.

    Attributes:
        rows: every linear of the model.
        matches: sparse ops in the graphs as they were captured.
        at_decode: sparse ops if every input had one row; the same as `matches` when it had.
        near_misses: places that resemble a pattern and are not one, each with its reason.
        graph_breaks: why the model is not one graph; empty when it is.
        num_graphs: graphs captured.
    """

    rows: list[LinearRow]
    matches: list[Match]
    at_decode: list[Match]
    near_misses: list[NearMiss]
    graph_breaks: list[str]
    num_graphs: int

    @property
    def kinds(self) -> Counter[str]:
        """Matches by kind."""
        return Counter(match.kind for match in self.matches)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all packed weights of the model."""
        return sum(row.num_bytes for row in self.packed)

    @property
    def bytes_in_16_bit(self) -> int:
        """Bytes that the packed weights would have as bfloat16."""
        return sum(row.bytes_in_16_bit for row in self.packed)

    @property
    def float_bytes(self) -> int:
        """Bytes of the linears that are not quantized."""
        return sum(row.num_bytes for row in self.rows if row.kind == "float")

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of the linears that are quantized and not packed."""
        return sum(row.num_bytes for row in self.rows if row.kind == "quantized")

    @property
    def packed(self) -> list[LinearRow]:
        return [row for row in self.rows if row.kind not in NOT_PACKED]

    @property
    def active_bytes(self) -> int | None:
        """Bytes of packed weights that decoding one token reads; None when a site's sparsity is not known."""
        active = [row.active_bytes for row in self.packed]
        return None if None in active else sum(filter(None, active))

    @property
    def bound(self) -> float | None:
        """Packed bytes over those that are read: no kernel can gain more on these layers from the sparsity alone."""
        return self.packed_bytes / self.active_bytes if self.active_bytes else None

    def summary(self) -> list[str]:
        """The totals, a sentence each."""
        num_float, num_quantized = (sum(row.kind == kind for row in self.rows) for kind in NOT_PACKED)
        lines = [f"{describe_kinds(self.kinds)} matched in {self.num_graphs} graph{'s' * (self.num_graphs != 1)}"]
        if len(self.at_decode) > len(self.matches):
            kinds = describe_kinds(Counter(match.kind for match in self.at_decode))
            lines.append(f"captured with more than one row, which runs dense; decoding one token would match {kinds}")
        if self.packed_bytes:
            lines.append(
                f"packed weights: {self.packed_bytes / 1e6:.2f} MB ({self.bytes_in_16_bit / 1e6:.2f} MB in 16 bits)"
            )
            if self.active_bytes is None:
                lines.append("bytes read per token are not known: calibrate the model, or pass sparsity= to explain")
            elif self.bound:
                lines.append(
                    f"read per token: {self.active_bytes / 1e6:.2f} MB of them, {self.bound:.2f}x fewer than dense"
                )
        if num_quantized:
            lines.append(
                f"quantized but not packed: {num_quantized} linear{'s' * (num_quantized != 1)}; call zigpass.prepare,"
                f" which packs once and frees their {self.unpacked_bytes / 1e6:.2f} MB"
            )
        if num_float:
            lines.append(f"not quantized: {num_float} linear{'s' * (num_float != 1)}, {self.float_bytes / 1e6:.2f} MB")
        if not self.rows:
            lines.append("the model has no linear layers")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists, dicts, strings and numbers."""
        return {
            "summary": self.summary(),
            "kinds": dict(self.kinds),
            "linears": [row.to_dict() for row in self.rows],
            "matches": [plain_match(match) for match in self.matches],
            "at_decode": [plain_match(match) for match in self.at_decode],
            "near_misses": [plain_match(near_miss) for near_miss in self.near_misses],
            "graph_breaks": list(self.graph_breaks),
            "num_graphs": self.num_graphs,
            "packed_bytes": self.packed_bytes,
            "float_bytes": self.float_bytes,
            "active_bytes": self.active_bytes,
            "bound": self.bound,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def table(self) -> Table:
        """The rows as a rich table."""
        table = Table(*COLUMNS, title="\n".join(self.summary()), title_justify="left")
        for row in self.rows:
            table.add_row(*row.cells())
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        cells = [COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        parts = [*self.summary(), "", *lines]
        if self.near_misses:
            parts += ["", "near misses:", *(f"- {near_miss.reason}" for near_miss in self.near_misses)]
        if self.graph_breaks:
            parts += ["", "graph breaks:", *(f"- {reason}" for reason in self.graph_breaks)]
        return "\n".join(parts)


def plain_match(found: Match | NearMiss) -> dict[str, Any]:
    """As JSON knows it, without the names inside a graph, which mean nothing to a reader."""
    inside = ("weights", "thresholds", "nodes")
    plain = {name: value for name, value in dataclasses.asdict(found).items() if name not in inside}
    return {name: _as_lists(value) for name, value in plain.items()}


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value
