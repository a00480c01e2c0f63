"""A model as an ONNX file: `zigpass export` or `python tools/export.py`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zigpass.cli import run_script
from zigpass.onnx.export import export_onnx
from zigpass.onnx.files import check_target
from zigpass.onnx.require import require_onnx
from zigpass.onnx.translate import LEAST_OPSET, check_opset
from zigpass.tools.load_model import load_model
from zigpass.tools.quality_options import Axis, Bits, GroupSize, Model, model_or_demo, quantization


def export(
    model: Model = None,
    output: Annotated[Path, typer.Option(help="The file to write; others go beside it.")] = Path("onnx/model.onnx"),
    thresholds: Annotated[
        Path | None, typer.Option(help="From `zigpass calibrate`; without it those that the model has, or dense.")
    ] = None,
    opset: Annotated[int, typer.Option(help="Of standard ops; 21 runs everywhere.")] = LEAST_OPSET,
    inline: Annotated[bool, typer.Option("--inline", help="Write no functions, for runtimes that have none.")] = False,
    bits: Bits = None,
    group_size: GroupSize = 128,
    scale_axis: Axis = "in",
) -> None:
    """Write a model as ONNX, for onnxruntime, onnxruntime-genai and others."""
    require_onnx()
    check_opset(opset)
    check_target(output, 0)
    console = Console()
    start = time.perf_counter()
    path = model_or_demo(model, console.print)
    loaded, tokenizer = load_model(path, quantization(bits, group_size, scale_axis))
    report = export_onnx(
        loaded, output, thresholds=thresholds, tokenizer=tokenizer, opset=opset, inline_functions=inline
    )
    console.print(str(report), highlight=False)
    console.print(f"done in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run_script(export)
