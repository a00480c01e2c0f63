"""`zigpass inspect` in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

DIFF_LINES = 24
"""Lines of a pass's diff that the overview shows; `--pass` and `--step` show all of them."""
COLORS = {"+": "green", "-": "red", "@": "cyan"}


def overview(data: dict[str, Any]) -> RenderableType:
    """Totals, the passes, the beginning of every diff, and what was refused."""
    parts: list[RenderableType] = [Text(data["title"], style="bold")]
    parts += [Text(f"  {line}") for line in [*data["summary"], *bound_lines(data["bound"])]]
    parts += ["", pass_table(data["passes"])]
    for step in data["passes"]:
        if step["diff"]:
            parts += ["", diff(step, DIFF_LINES)]
    return Group(*parts, *refusals(data["near_misses"]), *graph_breaks(data["graph_breaks"]))


def detail(steps: Sequence[dict[str, Any]]) -> RenderableType:
    """Some steps whole."""
    parts: list[RenderableType] = [pass_table(steps)]
    for step in steps:
        parts += ["", diff(step, None)] if step["diff"] else []
        parts += [Text.assemble(("near miss: ", "yellow"), reason) for reason in step["near_misses"]]
    return Group(*parts)


def pass_table(steps: Sequence[dict[str, Any]]) -> Table:
    table = Table("step", "pass", "count", "ms", "nodes", "what it does", box=None, pad_edge=False)
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    several = len({step["graph"] for step in steps}) > 1
    for step in steps:
        before, after = step["nodes_before"], step["nodes_after"]
        name = f"{step['name']} (graph {step['graph']})" if several else step["name"]
        nodes = str(before) if before == after else f"{before} -> {after}"
        style = "" if step["count"] else "dim"
        table.add_row(
            str(step["number"]), name, str(step["count"]), f"{step['milliseconds']:.1f}", nodes,
            escape(step["summary"]), style=style,
        )  # fmt: skip
    return table


def diff(step: dict[str, Any], limit: int | None) -> RenderableType:
    """A unified diff in colours."""
    lines = step["diff"]
    shown = lines if limit is None else lines[:limit]
    parts = [Text(line, style=COLORS.get(line[:1], "")) for line in shown]
    if len(shown) < len(lines):
        left = len(lines) - len(shown)
        parts.append(Text(f"... {left} more lines: --pass {step['name']}", style="dim"))
    return Group(*parts)


def bound_lines(bound: dict[str, Any]) -> list[str]:
    """What this device allows, in a sentence."""
    if not bound["bandwidth"] or not bound["dense_tokens_per_second"]:
        return []
    line = (
        f"this device reads {bound['bandwidth'] / 1e9:.1f} GB/s: at most {bound['dense_tokens_per_second']:.0f}"
        " tokens/s dense"
    )
    sparse = bound["sparse_tokens_per_second"]
    return [f"{line}, {sparse:.0f} sparse" if sparse else line]


def refusals(near_misses: Sequence[dict[str, Any]]) -> list[RenderableType]:
    if not near_misses:
        return []
    lines = dict.fromkeys(miss["reason"] for miss in near_misses)
    return ["", Text("near misses", style="bold yellow"), *(Text(f"- {line}") for line in lines)]


def graph_breaks(breaks: Sequence[str]) -> list[RenderableType]:
    return ["", Text("graph breaks", style="bold yellow"), *(Text(f"- {line}") for line in breaks)] if breaks else []


def print_wide(console: Console, shown: RenderableType) -> None:
    """Long lines of code stay one line where the output is no terminal; there they wrap."""
    console.print(shown, soft_wrap=not console.is_terminal)
