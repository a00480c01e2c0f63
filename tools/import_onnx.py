"""zigpass nodes for an ONNX model made elsewhere: `zigpass import-onnx` or `python tools/import_onnx.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zigpass.cli import run_script
from zigpass.onnx.import_onnx import import_onnx as rewrite
from zigpass.runtime import ZigpassError


def import_onnx(
    source: Annotated[Path, typer.Argument(help="ONNX model whose linears are MatMulNBits.")],
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    thresholds: Annotated[
        Path | None, typer.Option(help="From `zigpass calibrate` for the same model in torch.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="One number for all MLPs instead; 0 is dense.")] = None,
) -> None:
    """Put zigpass nodes in the place of an ONNX model's gated MLPs."""
    if thresholds is not None and threshold is not None:
        raise ZigpassError("--thresholds and --threshold: give one of them")
    report = rewrite(source, output, thresholds=thresholds if thresholds is not None else threshold or 0.0)
    Console().print(str(report), highlight=False)


if __name__ == "__main__":
    run_script(import_onnx)
