"""Thresholds for a model, to a file: `zigpass calibrate` or `python tools/calibrate.py`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from zigpass.calibrate import MAX_SPARSITY, check_target, find_allocation, find_rule
from zigpass.calibrate import calibrate as find_thresholds
from zigpass.calibration import Selection
from zigpass.cli import run_script
from zigpass.tools.demo import sparsity_table
from zigpass.tools.device_option import Device, find_device, move_to
from zigpass.tools.load_model import load_model
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


def calibrate(
    model: Model = None,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("thresholds.safetensors"),
    sparsity: Annotated[float, typer.Option(help="Share of the weight bytes not to read, in [0, 1).")] = 0.5,
    allocation: Annotated[str, typer.Option(help="measured, uniform, teal or sensitivity.")] = "measured",
    rule: Annotated[str, typer.Option(help="magnitude, column_norm or sensitivity.")] = "magnitude",
    sites: Annotated[list[str] | None, typer.Option(help="Only these sites, by kind or name pattern.")] = None,
    max_sparsity: Annotated[float, typer.Option(help="Most sparsity of one site.")] = MAX_SPARSITY,
    selection: Annotated[str, typer.Option(help="threshold, or top_k for a fixed count of entries.")] = "threshold",
    recalibrate: Recalibrate = True,
    resume: Annotated[
        Path | None, typer.Option(help="File that keeps finished measurements; OUTPUT.state while it runs by default.")
    ] = None,
    text: CalibrationText = None,
    device: Device = "",
    encoding: Encoding = "utf-8",
    unwrap: Unwrap = False,
    bits: Bits = None,
    group_size: GroupSize = 128,
    scale_axis: Axis = "in",
) -> None:
    """Find the thresholds of a model for a target sparsity and write them to a file.

    After Ctrl-C the same command goes on where it stopped.
    """
    check_target(sparsity)
    find_allocation(allocation)
    find_rule(rule)
    place = find_device(device)
    console = Console()
    _, texts = texts_or_topics(text, 0, encoding, unwrap)
    loaded, tokenizer = load_model(model_or_demo(model, console.print), quantization(bits, group_size, scale_axis))
    loaded = move_to(loaded, place)
    state = resume or Path(f"{output}.state")
    start = time.perf_counter()
    try:
        thresholds = find_thresholds(
            loaded,
            texts,
            sparsity,
            allocation=allocation,
            rule=rule,
            sites=sites or None,
            max_sparsity=max_sparsity,
            selection=cast(Selection, selection),
            recalibrate=recalibrate,
            tokenizer=tokenizer,
            resume=state,
        )
    except KeyboardInterrupt:
        if state.exists():
            console.print(f"interrupted; {state} keeps what was measured, and the same command goes on from there")
        raise
    thresholds.save(output)
    if resume is None:
        state.unlink(missing_ok=True)
    realized = {name: site.realized_sparsity for name, site in thresholds.sites.items()}
    console.print(sparsity_table(realized, "sparsity, calibration text"))
    console.print(
        f"{len(realized)} sites, {thresholds.num_tokens} tokens, allocation {thresholds.allocation},"
        f" {time.perf_counter() - start:.0f} s: {output}"
    )


if __name__ == "__main__":
    run_script(calibrate)
