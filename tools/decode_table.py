"""The README's table of whole models: `python -m zigpass.tools.decode_table [FILE]` prints Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from zigpass.cli import run_script
from zigpass.runtime import ZigpassError
from zigpass.tools.bench_decode import RESULTS

COLUMNS: Final = ("us a token", "tokens/s", "to tinygemm", "linears", "attention", "head", "rest", "gaps", "kernels")


def decode_table(
    file: Annotated[Path, typer.Argument(help="From `zigpass bench decode`.")] = RESULTS / "decode_h100.json",
    layer: Annotated[str, typer.Option(help="Print the launches of one layer of a MODEL:VARIANT in their order.")] = "",
) -> None:
    """Print the rows of a result file as a Markdown table, or the launches of one decoder layer."""
    if not file.is_file():
        raise ZigpassError(f"there is no file {file}; `zigpass bench decode` writes one")
    result = json.loads(file.read_text(encoding="utf-8"))
    typer.echo("\n".join(layer_lines(result["rows"], layer) if layer else table_lines(result)))


def table_lines(result: dict[str, Any]) -> list[str]:
    """Markdown of all rows, those of one model together."""
    rows = result["rows"]
    whole = {model: shape["of_layers"] for model, shape in result["shapes"].items()}
    peers = {row["model"]: row["microseconds"] for row in rows if row["variant"] == "tinygemm"}
    header = ["model", "", *COLUMNS]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in rows:
        parts, peer = row["parts"], peers.get(row["model"])
        values = [
            f"{row['microseconds']:,.0f}",
            f"{1e6 / row['microseconds']:.0f}",
            "" if peer is None else f"{peer / row['microseconds']:.2f}x",
            *(f"{parts[name]:,.0f}" for name in ("linears", "attention", "head", "other", "gaps")),
            str(parts["kernels"]),
        ]
        of = f" of {whole[row['model']]}" if whole[row["model"]] else ""
        lines.append(f"| {row['model']} ({row['layers']}{of} layers) | {row['variant']} | {' | '.join(values)} |")
    return lines


def layer_lines(rows: list[dict[str, Any]], which: str) -> list[str]:
    """One line for each launch: microseconds since the launch before had ended, microseconds it took, name.

    Raises:
        ZigpassError: no such row.
    """
    for row in rows:
        if f"{row['model']}:{row['variant']}" == which:
            return [f"{item['gap']:8.2f} {item['duration']:8.2f}  {item['name']}" for item in row["parts"]["layer"]]
    known = ", ".join(f"{row['model']}:{row['variant']}" for row in rows)
    raise ZigpassError(f"there is no row {which!r}; the file has {known}")


if __name__ == "__main__":
    run_script(decode_table)
