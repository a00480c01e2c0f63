"""Measures quality and writes the results page: `python tools/quality.py`.

Every rule and allocation at 25, 40, 50 and 60 %, to tools/results/quality-<model>.json and a plot beside the page; the
page docs/quality.md is made of all such files. Half an hour for SmolLM2-135M on two cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zigpass.allocations import ALLOCATIONS
from zigpass.cli import run_script
from zigpass.rules import RULES
from zigpass.tokens import encode
from zigpass.tools.evaluate import quality_table
from zigpass.tools.load_model import load_floats, load_model
from zigpass.tools.measure_quality import TOP_K, Measurement, measure_quality
from zigpass.tools.measure_quantizers import QuantizerMeasurement, measure_quantizers
from zigpass.tools.plot_quality import plot_quality
from zigpass.tools.quality_options import (
    Axis,
    Bits,
    CalibrationText,
    Encoding,
    GroupSize,
    Model,
    Unwrap,
    model_or_demo,
    quantization,
    texts_or_topics,
)
from zigpass.tools.quality_page import quality_page

TARGETS = (0.25, 0.4, 0.5, 0.6)
COMBINATIONS = (
    *(("magnitude", allocation) for allocation in ALLOCATIONS),
    *((rule, allocation) for rule in (*RULES, TOP_K) if rule != "magnitude" for allocation in ("measured", "uniform")),
)
"""(rule, allocation): every allocation with the default rule; other rules with the default allocation and uniform."""
ROOT = Path(__file__).resolve().parent.parent


def quality(
    model: Model = None,
    text: Annotated[list[Path] | None, typer.Option("--text", help="Held-out text file; several times.")] = None,
    calibration: CalibrationText = None,
    encoding: Encoding = "utf-8",
    unwrap: Unwrap = False,
    windows: Annotated[int, typer.Option(help="Held-out windows to score.")] = 16,
    resume: Annotated[Path | None, typer.Option(help="File that keeps finished measurements of sites.")] = None,
    quantizers: Annotated[bool, typer.Option(help="Compare quantizers instead of sparsities.")] = False,
    page_only: Annotated[bool, typer.Option(help="Measure nothing, write the page again.")] = False,
    output: Annotated[Path, typer.Option(help="Folder that gets docs/ and tools/results/.")] = ROOT,
    bits: Bits = None,
    group_size: GroupSize = 128,
    scale_axis: Axis = "in",
) -> None:
    """Measure every rule and allocation and write docs/quality.md."""
    console = Console()
    results = output / "tools" / "results"
    if not page_only:
        calibration_name, calibration_texts = texts_or_topics(calibration, 0, encoding, unwrap)
        held_out_name, held_out_texts = texts_or_topics(text, 1, encoding, unwrap)
        path = model_or_demo(model, console.print)
        names = (path.stem.partition(".")[0], calibration_name, held_out_name)
        if quantizers:
            loaded, tokenizer = load_floats(path)
        else:
            loaded, tokenizer = load_model(path, quantization(bits, group_size, scale_axis))
        ids, held_out_ids = (encode(texts, tokenizer, loaded) for texts in (calibration_texts, held_out_texts))
        if quantizers:
            found = measure_quantizers(loaded, ids, held_out_ids, names=names, num_windows=windows)
            found.save(results / f"quantizers-{names[0]}.json")
        else:
            measurement = measure_quality(
                loaded,
                ids,
                held_out_ids,
                names=names,
                targets=TARGETS,
                combinations=COMBINATIONS,
                num_windows=windows,
                resume=resume,
            )
            console.print(quality_table(measurement))
            measurement.save(results / f"quality-{names[0]}.json")
    write_page(output)


def write_page(output: Path) -> None:
    """The page and its plots from all result files."""
    results = output / "tools" / "results"
    measurements = [Measurement.load(file) for file in sorted(results.glob("quality-*.json"), reverse=True)]
    quantizers = [QuantizerMeasurement.load(file) for file in sorted(results.glob("quantizers-*.json"))]
    docs = output / "docs"
    docs.mkdir(exist_ok=True)
    for measurement in measurements:
        plot_quality(measurement, docs / f"quality-{measurement.model}.png")
    (docs / "quality.md").write_text(quality_page(measurements, quantizers), encoding="utf-8")


if __name__ == "__main__":
    run_script(quality)
