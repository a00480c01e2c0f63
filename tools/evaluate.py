"""What sparsity costs a model: `zigpass evaluate` or `python tools/evaluate.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from zigpass.allocations import ALLOCATIONS
from zigpass.calibrate import check_target, find_allocation
from zigpass.cli import run_script
from zigpass.runtime import ZigpassError
from zigpass.tools.device_option import Device, find_device, move_to
from zigpass.tools.load_model import load_model
from zigpass.tools.measure_quality import Measurement, measure_quality, rule_and_selection
from zigpass.tools.quality_options import (
    Axis,
    Bits,
    CalibrationText,
    Encoding,
    GroupSize,
    Model,
    Recalibrate,
    Unwrap,
    model_or_demo,
    quantization,
    texts_or_topics,
)


def evaluate(
    model: Model = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Target; several times. 0.25, 0.4, 0.5 by default.")
    ] = None,
    allocation: Annotated[
        list[str] | None, typer.Option(help="Several times; measured and uniform by default.")
    ] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Several times; top_k too; magnitude by default.")] = None,
    recalibrate: Recalibrate = True,
    windows: Annotated[int, typer.Option(help="Held-out windows to score.")] = 8,
    window: Annotated[int, typer.Option(help="Tokens of a window; the first half runs densely.")] = 512,
    text: Annotated[list[Path] | None, typer.Option("--text", help="Held-out text file; several times.")] = None,
    calibration: CalibrationText = None,
    encoding: Encoding = "utf-8",
    unwrap: Unwrap = False,
    device: Device = "",
    resume: Annotated[Path | None, typer.Option(help="File that keeps finished measurements.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw KL against bytes read into this PNG or SVG file.")] = None,
    lm_eval: Annotated[list[str] | None, typer.Option(help="Task to run with lm-eval at every setting.")] = None,
    bits: Bits = None,
    group_size: GroupSize = 128,
    scale_axis: Axis = "in",
) -> None:
    """Perplexity, KL and top-1 agreement against the dense model, for several sparsities, rules and allocations."""
    targets = sparsity or [0.25, 0.4, 0.5]
    combinations = [(one, other) for one in rule or ["magnitude"] for other in allocation or ["measured", "uniform"]]
    for target in targets:
        check_target(target)
    for one, other in combinations:
        rule_and_selection(one)
        find_allocation(other)
    if bool(text) != bool(calibration):
        raise ZigpassError("--text and --calibration go together: one to measure on, one to calibrate on")
    place = find_device(device)
    console = Console()
    calibration_name, calibration_texts = texts_or_topics(calibration, 0, encoding, unwrap)
    held_out_name, held_out_texts = texts_or_topics(text, 1, encoding, unwrap)
    path = model_or_demo(model, console.print)
    loaded, tokenizer = load_model(path, quantization(bits, group_size, scale_axis))
    measurement = measure_quality(
        move_to(loaded, place),
        calibration_texts,
        held_out_texts,
        names=(path.stem, calibration_name, held_out_name),
        tokenizer=tokenizer,
        targets=targets,
        combinations=combinations,
        recalibrate=recalibrate,
        window=window,
        num_windows=windows,
        resume=resume,
        lm_eval=(tokenizer, lm_eval) if lm_eval else None,
    )
    console.print(quality_table(measurement))
    if json_file:
        measurement.save(json_file)
    if plot:
        from zigpass.tools.plot_quality import plot_quality

        plot_quality(measurement, plot)


def quality_table(measurement: Measurement) -> Table:
    """One line per setting."""
    title = (
        f"{measurement.model}: {measurement.scored_tokens} tokens of {measurement.held_out_text},"
        f" dense perplexity {measurement.dense_perplexity:.2f}, dense bytes {measurement.dense_bytes:,}"
    )
    table = Table("target", "rule", "allocation", "realized", "bytes read", "perplexity", "KL", "top-1", title=title)
    order = list(ALLOCATIONS)
    for row in sorted(measurement.rows, key=lambda row: (row.target, row.rule, order.index(row.allocation))):
        table.add_row(
            f"{row.target:.0%}",
            row.rule,
            row.allocation if row.used == row.allocation else f"{row.allocation} (gave way to {row.used})",
            f"{row.realized:.1%}",
            f"{row.bytes_read:,}",
            f"{row.perplexity:.2f}",
            f"{row.kl:.4f} ± {row.kl_error:.4f}",
            f"{row.top1:.1%} ± {row.top1_error:.1%}",
        )
        for task, metrics in row.lm_eval.items():
            table.add_row("", "", task, "", "", "", "", ", ".join(f"{name} {value}" for name, value in metrics.items()))
    return table


if __name__ == "__main__":
    run_script(evaluate)
