"""See what zigpass does to a model: `zigpass inspect` or `python tools/inspect_passes.py`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from zigpass.cli import run_script
from zigpass.inspection import inspect_model, inspect_program
from zigpass.linear import find_linears
from zigpass.passes import OPTIONAL_PASSES
from zigpass.runtime import ZigpassError
from zigpass.site_profile import SiteProfile, decode_steps, profile_sites
from zigpass.thresholds import Thresholds
from zigpass.tools.bandwidth import read_bandwidth
from zigpass.tools.inspect_data import Inspected
from zigpass.tools.inspect_source import ModelSource, OnnxSource, ProgramSource, load_source
from zigpass.tools.inspect_terminal import detail, overview, print_wide
from zigpass.tools.quality_options import Axis, Bits, GroupSize, model_or_demo, quantization

WINDOW = 256
"""Tokens of a window of text that activations are looked at on; the second half counts."""

Where = Annotated[
    str | None,
    typer.Argument(
        help="GGUF file, Hugging Face folder or id in the local cache, module:factory, .pt2 or .onnx; by default the"
        " demo's model."
    ),
]


def inspect(
    source: Where = None,
    pass_name: Annotated[str | None, typer.Option("--pass", help="Only this pass, with its whole diff.")] = None,
    step: Annotated[int | None, typer.Option(help="Only this step of the list, with its whole diff.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON; - prints it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw a block before and after; needs pydot and Graphviz.")] = None,
    block: Annotated[str | None, typer.Option(help="The block to draw; the first with a match by default.")] = None,
    model_explorer: Annotated[
        Path | None, typer.Option(help="Write the graphs and a sparsity overlay for Model Explorer into this folder.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Calibrate for this sparsity first; of a .pt2 file, count bytes for it.")
    ] = None,
    thresholds: Annotated[Path | None, typer.Option(help="Apply the thresholds in this file first.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the call that is captured; one is a decoding step.")] = 1,
    any_rows: Annotated[bool, typer.Option("--any-rows", help="Of a .pt2 file: fuse for any number of rows.")] = False,
    without: Annotated[list[str] | None, typer.Option(help="Leave out this optional pass; several times.")] = None,
    windows: Annotated[int, typer.Option(help="Windows of text to look at activations on; 0 for none.")] = 1,
    bits: Bits = None,
    group_size: GroupSize = 128,
    scale_axis: Axis = "in",
) -> None:
    """Show what every pass does to a model: counts, times, graph differences, near misses."""
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ZigpassError(f"--sparsity must be at least 0 and below 1, got {sparsity}")
    console = Console(stderr=str(json_file) == "-")
    word = source or str(model_or_demo(None, console.print))
    found = load_source(word, quantization(bits, group_size, scale_axis), tokens)
    if isinstance(found, OnnxSource):
        from zigpass.tools.inspect_onnx import show_onnx

        only_console = [name for name, value in (("--html", html), ("--svg", svg), ("--pass", pass_name)) if value]
        if only_console:
            raise ZigpassError(f"{', '.join(only_console)}: an ONNX file has nodes and no passes; use --json")
        show_onnx(console, found.path, json_file)
        return
    skip = check_skip(without or [])
    if isinstance(found, ProgramSource):
        given = [name for name, value in (("--thresholds", thresholds), ("--model-explorer", model_explorer)) if value]
        if given:
            raise ZigpassError(f"{', '.join(given)}: give the model instead of a .pt2 file")
        inspection = inspect_program(found.program, sparsity=sparsity, skip=skip, any_rows=any_rows)
        inspected = Inspected(found.title, inspection, [], "", read_bandwidth(torch.device("cpu")))
    else:
        measure = windows if html or json_file or model_explorer else 0
        inspected = inspect_source(found, sparsity, thresholds, measure, skip)
    data = inspected.to_dict()
    if pass_name is not None or step is not None:
        print_wide(console, detail(choose(data["passes"], pass_name, step)))
    elif str(json_file) != "-":
        print_wide(console, overview(data))
    if str(json_file) == "-":
        typer.echo(json.dumps(data))
    elif json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(data) + "\n", encoding="utf-8")
    if html:
        from zigpass.tools.inspect_html import write_html

        write_html(data, html)
    if svg:
        from zigpass.tools.inspect_svg import write_svg

        write_svg(data["blocks"], block, svg)
    if model_explorer:
        from zigpass.tools.model_explorer import write_model_explorer

        write_model_explorer(inspected, model_explorer)
    for path in (json_file, html, svg, model_explorer):
        if path is not None and str(path) != "-":
            console.print(f"wrote {path}")


def inspect_source(
    source: ModelSource, sparsity: float | None, thresholds: Path | None, windows: int, skip: frozenset[str]
) -> Inspected:
    """Set thresholds, inspect the model, and look at its activations on text, or on the one call there is.

    Args:
        windows: of text; 0 looks at no activations.
    """
    model = source.model
    packed = any(True for _ in find_linears(model))
    if thresholds is not None:
        Thresholds.load(thresholds).apply(model)
    elif sparsity is not None and packed and source.tokenizer is not None:
        calibrate_quickly(model, sparsity, source.tokenizer)
    own = sparsity if source.tokenizer is None else None  # a calibrated model knows the target of each site
    inspection = inspect_model(model, source.args, source.kwargs, sparsity=own, skip=skip)
    sites, profiled_on = profile(source, windows) if windows and packed else ([], "")
    tensors = itertools.chain(model.parameters(), model.buffers(), [torch.empty(0)])
    return Inspected(source.title, inspection, sites, profiled_on, read_bandwidth(next(tensors).device))


def calibrate_quickly(model: nn.Module, sparsity: float, tokenizer: Any) -> None:
    """The same sparsity everywhere, from a little of Python's documentation topics."""
    from zigpass.calibrate import calibrate
    from zigpass.tools.demo import topics

    calibrate(
        model, topics()[0], sparsity, allocation="uniform", tokenizer=tokenizer, window=WINDOW, num_windows=2,
        recalibrate=False, progress=False,
    )  # fmt: skip


def profile(source: ModelSource, windows: int) -> tuple[list[SiteProfile], str]:
    """Activations of the sites, and a name for what they were seen on."""
    model = source.model
    if source.tokenizer is None:
        return profile_sites(model, [lambda: model(*source.args, **source.kwargs)]), "the example call"
    from zigpass.tokens import text_windows
    from zigpass.tools.demo import topics

    ids = text_windows([topics()[1]], source.tokenizer, model, WINDOW, windows)
    text = f"{ids.shape[0] * ids.shape[1] // 2} tokens of Python's documentation topics"
    return profile_sites(model, decode_steps(model, ids)), text


def choose(steps: list[dict[str, Any]], pass_name: str | None, number: int | None) -> list[dict[str, Any]]:
    """The steps that --pass and --step ask for."""
    names = list(dict.fromkeys(step["name"] for step in steps))
    if pass_name is not None and pass_name not in names:
        raise ZigpassError(f"no pass {pass_name!r} ran; the passes are {', '.join(names)}")
    if number is not None and not 1 <= number <= len(steps):
        raise ZigpassError(f"there is no step {number}; the steps are 1 to {len(steps)}")
    return [step for step in steps if pass_name in (None, step["name"]) and number in (None, step["number"])]


def check_skip(names: list[str]) -> frozenset[str]:
    """Raise unless every name is an optional pass."""
    unknown = set(names) - set(OPTIONAL_PASSES)
    if unknown:
        raise ZigpassError(f"--without takes {', '.join(OPTIONAL_PASSES)}; got {', '.join(sorted(unknown))}")
    return frozenset(names)


if __name__ == "__main__":
    run_script(inspect)
