"""The report that `zigpass.explain` returns: fields, text, a rich table, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

from rich.table import Table

from zigpass.passes import Match, NearMiss

from .rewrite_graph import describe_kinds

COLUMNS = ("layer", "runs as", "N x K", "MB", "note")


@dataclasses.dataclass(frozen=True)
class LinearRow:
    """One linear layer of the model.

    Attributes:
        name: its qualified name.
        kind: "gated_mlp", "mlp", "qkv" or "linear" (runs sparse, alone or as part of a fused op), "dense_linear"
            (packed, never sparse, such as an output head), "dense" (packed, more than one row), "unused" (packed, not
            called) or "float" (not quantized).
        n, k: out_features and in_features.
        num_bytes: bytes of its weight as it is now.
        note: why it is not fused, if there is something to say.
    """

    name: str
    kind: str
    n: int
    k: int
    num_bytes: int
    note: str

    def cells(self) -> tuple[str, ...]:
        return self.name, self.kind, f"{self.n} x {self.k}", f"{self.num_bytes / 1e6:.2f}", self.note


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
        return sum(row.num_bytes for row in self.rows if row.kind != "float")

    @property
    def bytes_in_16_bit(self) -> int:
        """Bytes that the packed weights would have as bfloat16."""
        return sum(2 * row.n * row.k for row in self.rows if row.kind != "float")

    @property
    def float_bytes(self) -> int:
        """Bytes of the linears that are not quantized."""
        return sum(row.num_bytes for row in self.rows if row.kind == "float")

    def summary(self) -> list[str]:
        """The totals, a sentence each."""
        num_float = sum(row.kind == "float" for row in self.rows)
        lines = [f"{describe_kinds(self.kinds)} matched in {self.num_graphs} graph{'s' * (self.num_graphs != 1)}"]
        if len(self.at_decode) > len(self.matches):
            kinds = describe_kinds(Counter(match.kind for match in self.at_decode))
            lines.append(f"captured with more than one row, which runs dense; decoding one token would match {kinds}")
        if self.packed_bytes:
            lines.append(
                f"packed weights: {self.packed_bytes / 1e6:.2f} MB ({self.bytes_in_16_bit / 1e6:.2f} MB in 16 bits)"
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
            "linears": [dataclasses.asdict(row) for row in self.rows],
            "matches": [_plain(match) for match in self.matches],
            "at_decode": [_plain(match) for match in self.at_decode],
            "near_misses": [_plain(near_miss) for near_miss in self.near_misses],
            "graph_breaks": list(self.graph_breaks),
            "num_graphs": self.num_graphs,
            "packed_bytes": self.packed_bytes,
            "float_bytes": self.float_bytes,
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


def _plain(found: Match | NearMiss) -> dict[str, Any]:
    """As a dict, without the names inside a graph, which mean nothing to a reader."""
    return {name: value for name, value in dataclasses.asdict(found).items() if name != "weights"}
