"""Measures quality and writes the results page: `python tools/quality.py`.

Every rule and allocation at 25, 40, 50 and 60 %, on each held-out text by itself: tools/results/quality-*.json and a
plot each; the page docs/quality.md is made of all such files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zigpass.allocations import ALLOCATIONS
from zigpass.calibration import Calibration
from zigpass.cli import run_script
from zigpass.rules import RULES
from zigpass.runtime import ZigpassError
from zigpass.tokens import encode, text_windows
from zigpass.tools.device_option import Device, find_device, move_to
from zigpass.tools.evaluate import quality_table
from zigpass.tools.load_model import load_floats, load_model
from zigpass.tools.measure_quality import TOP_K, Measurement, find_settings, measure_settings
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
from zigpass.tools.quality_page import quality_page, slug

TARGETS = (0.25, 0.4, 0.5, 0.6)
COMBINATIONS = (
    *(("magnitude", allocation) for allocation in ALLOCATIONS),
    *((rule, "uniform") for rule in RULES if rule != "magnitude"),
    *((TOP_K, allocation) for allocation in ("measured", "uniform")),
)
"""(rule, allocation): every allocation with the default rule; every rule at uniform sparsity, where only rules differ
(with measured allocation the weighted rules were within 0.01 nats of magnitude on SmolLM2 up to 50 %)."""
ROOT = Path(__file__).resolve().parent.parent


def quality(
    model: Model = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Held-out text file, measured by itself; several times.")
    ] = None,
    calibration: CalibrationText = None,
    encoding: Encoding = "utf-8",
    unwrap: Unwrap = False,
    windows: Annotated[int, typer.Option(help="Held-out windows to score.")] = 16,
    device: Device = "",
    resume: Annotated[Path | None, typer.Option(help="File that keeps finished measurements.")] = None,
    quantizers: Annotated[bool, typer.Option(help="Compare quantizers instead of sparsities.")] = False,
    page_only: Annotated[bool, typer.Option(help="Measure nothing, write the page again.")] = False,
    output: Annotated[Path, typer.Option(help="Folder that gets docs/ and tools/results/.")] = ROOT,
    bits: Bits = None,
    group_size: GroupSize = 128,
    scale_axis: Axis = "in",
) -> None:
    """Measure every rule and allocation and write docs/quality.md."""
    if quantizers and device:
        raise ZigpassError("--quantizers compares on the CPU: leave --device out")
    console = Console()
    place = find_device(device)
    results = output / "tools" / "results"
    if not page_only:
        calibration_name, calibration_texts = texts_or_topics(calibration, 0, encoding, unwrap)
        held_out = dict(texts_or_topics([one], 1, encoding, unwrap) for one in text or [])
        held_out = held_out or dict([texts_or_topics(None, 1, encoding, unwrap)])
        path = model_or_demo(model, console.print)
        name = path.stem.partition(".")[0] if path.suffix == ".gguf" else path.name
        if quantizers:
            floats, tokenizer = load_floats(path)
            ids = encode(calibration_texts, tokenizer, floats)
            texts = [part for parts in held_out.values() for part in parts]
            names = (name, calibration_name, ", ".join(held_out))
            found = measure_quantizers(floats, ids, encode(texts, tokenizer, floats), names=names, num_windows=windows)
            found.save(results / f"quantizers-{name}.json")
        else:
            loaded, tokenizer = load_model(path, quantization(bits, group_size, scale_axis))
            loaded = move_to(loaded, place)
            measured = Calibration(loaded, calibration_texts, tokenizer=tokenizer, resume=resume)
            for texts in held_out.values():  # one that does not do raises before the work
                text_windows(texts, tokenizer, loaded, measured.windows.shape[1], windows)
            settings = find_settings(measured, TARGETS, COMBINATIONS)
            for key, texts in held_out.items():
                names = (name, calibration_name, key)
                measurement = measure_settings(
                    measured, settings, texts, names=names, tokenizer=tokenizer, num_windows=windows
                )
                measurement.save(results / f"{slug(measurement)}.json")
                console.print(quality_table(measurement))
    write_page(output)


def write_page(output: Path) -> None:
    """The page and its plots from all result files."""
    results = output / "tools" / "results"
    measurements = [Measurement.load(file) for file in sorted(results.glob("quality-*.json"), reverse=True)]
    quantizers = [QuantizerMeasurement.load(file) for file in sorted(results.glob("quantizers-*.json"))]
    docs = output / "docs"
    docs.mkdir(exist_ok=True)
    for measurement in measurements:
        plot_quality(measurement, docs / f"{slug(measurement)}.png")
    (docs / "quality.md").write_text(quality_page(measurements, quantizers), encoding="utf-8")


if __name__ == "__main__":
    run_script(quality)
