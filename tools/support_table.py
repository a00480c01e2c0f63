"""What works: models x representations as Markdown tables, from tiny random models of the real classes.

    python -m zigpass.tools.support_table
    python -m zigpass.tools.support_table --output docs/support.md

For each cell a model is quantized, packed, and decodes through the backend at sparsity 0. The reference is the same
model with float linears that hold the dequantized weights. The table on the screen has a line per model; `--output`
writes the long one, with a line per cell.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import torch
import typer

from zigpass.progress import track
from zigpass.runtime import ZigpassError

from .representations import REPRESENTATIONS
from .support_cells import COLUMNS, EXPORTED, GGUF_TYPES, Cell, measure
from .tiny_models import FAMILIES

LONG_HEADER: Final = ("model", "representation", "matched", "linears", "logit difference", "not matched, and why")
GGUF: Final = "GGUF"


def support_table(
    model: Annotated[list[str] | None, typer.Option(help="families to run; all of them by default")] = None,
    representation: Annotated[list[str] | None, typer.Option(help="columns to run; all of them by default")] = None,
    output: Annotated[Path | None, typer.Option(help="file for the long table")] = None,
) -> None:
    """Print the support table."""
    families, columns = _chosen(model, FAMILIES, "models"), _chosen(representation, COLUMNS, "representations")
    missing = {name: item.missing for name, item in REPRESENTATIONS.items() if name in columns and item.missing}
    columns = [name for name in columns if name not in missing]
    pairs = [(family, column) for family in families for column in columns]
    cells = [measure(*pair) for pair in track(pairs, "measuring", show=output is not None)]
    print(short_table(cells), end="")
    for name, package in missing.items():
        print(f"\n{name}: skipped, {package} is not installed")
    if output is not None:
        output.write_text(long_page(cells), encoding="utf-8")


def short_table(cells: Iterable[Cell]) -> str:
    """A line per model, a column per representation (all GGUF types in one), then the reasons."""
    grid: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        title = GGUF if cell.representation.startswith(GGUF) else cell.representation
        grid.setdefault(cell.model, {}).setdefault(title, []).append(cell)
    titles = list(dict.fromkeys(title for row in grid.values() for title in row))
    notes: dict[str, int] = {}
    rows = [("", *titles), ("---",) * (len(titles) + 1)]
    rows += [(model, *(_short(row[title], notes) for title in titles)) for model, row in grid.items()]
    worst = (_worst([cell for row in grid.values() for cell in row.get(title, [])]) for title in titles)
    rows.append(("largest logit difference", *worst))
    lines = [_line(row) for row in rows]
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in notes.items())]) + "\n"


def _short(cells: list[Cell], notes: dict[str, int]) -> str:
    """ "14/14", with the numbers of the reasons where something that was quantized is not matched."""
    counts = " ".join(dict.fromkeys(f"{cell.num_matched}/{cell.expected}" if cell.expected else "-" for cell in cells))
    complete = all(cell.num_matched == cell.expected > 0 for cell in cells)
    reasons = dict.fromkeys(reason for cell in cells for reason in cell.reasons) if not complete else {}
    marks = [str(notes.setdefault(reason, len(notes) + 1)) for reason in reasons]
    return f"{counts} ({', '.join(marks)})" if marks else counts


def _worst(cells: list[Cell]) -> str:
    differences = [cell.difference for cell in cells if cell.difference is not None]
    return f"{max(differences):.0e}" if differences else "-"


def long_page(cells: list[Cell]) -> str:
    """A line per cell, with every reason."""
    rows = [LONG_HEADER, ("---",) * len(LONG_HEADER), *map(_long_row, cells)]
    made = [f"| {name} | {item.how} |" for name, item in REPRESENTATIONS.items()]
    made += [f"| {name} | its library, from a graph of `torch.export` |" for name in EXPORTED]
    made.append(f"| GGUF {', '.join(GGUF_TYPES)} | files written with the gguf package |")
    return "\n".join(
        [
            "# What works",
            "",
            "Made by `python -m zigpass.tools.support_table --output docs/support.md` with tiny random models of the",
            "real transformers classes: two layers (one for GGUF), one token decoded after a prompt through",
            '`torch.compile(backend="zigpass", fullgraph=True)` at sparsity 0. The difference is the largest one of a',
            "logit to a float32 model with the dequantized weights, over the largest logit.",
            "",
            f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}.",
            "",
            "| representation | made by |",
            "| --- | --- |",
            *made,
            "",
            *map(_line, rows),
            "",
        ]
    )


def _long_row(cell: Cell) -> tuple[str, ...]:
    reasons = "; ".join(
        f"`{names[0]}`{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}"
        for reason, names in cell.reasons.items()
    )
    difference = "-" if cell.difference is None else f"{cell.difference:.0e}"
    return cell.model, cell.representation, cell.matched, f"{cell.num_matched} of {cell.expected}", difference, reasons


def _line(row: Iterable[str]) -> str:
    return "| " + " | ".join(row) + " |"


def _chosen(wanted: list[str] | None, known: Iterable[str], what: str) -> list[str]:
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise ZigpassError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(known)}")
    return wanted or list(known)


if __name__ == "__main__":
    from zigpass.cli import run_script

    run_script(support_table)
