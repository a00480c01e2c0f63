"""Plots from the JSON files of the other tools: `zigpass plot` or `python tools/plot.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[list[Path], typer.Argument(help="JSON files to read.")]
Picture = Annotated[Path, typer.Option("--output", "-o", help="PNG or SVG file to write.")]

plot = typer.Typer(no_args_is_help=True, help="Draw what the other tools measured.")


@plot.command()
def sparsity(
    data: Annotated[Path, typer.Argument(help="What `zigpass inspect --json` wrote.")], output: Picture
) -> None:
    """Realized against target sparsity, by layer and kind of site."""
    from zigpass.tools.plot_sparsity import plot_sparsity, read_sites

    plot_sparsity(read_sites(data), output)


@plot.command()
def histograms(
    data: Annotated[Path, typer.Argument(help="What `zigpass inspect --json` wrote.")],
    output: Picture,
    layer: Annotated[list[int] | None, typer.Option(help="Layers to show; first, middle and last by default.")] = None,
) -> None:
    """Activations of the sites of some layers, with their thresholds."""
    from zigpass.tools.plot_histograms import plot_histograms
    from zigpass.tools.plot_sparsity import read_sites

    plot_histograms(read_sites(data), layer, output)


@plot.command()
def quality(
    data: Annotated[Path, typer.Argument(help="What `zigpass evaluate --json` wrote.")], output: Picture
) -> None:
    """Quality against bytes read per token."""
    from zigpass.tools.measure_quality import Measurement
    from zigpass.tools.plot_quality import plot_quality

    plot_quality(Measurement.load(data), output)


@plot.command()
def bench(data: Data, output: Picture) -> None:
    """Times against the best peer, from files of `zigpass bench cpu` and `bench_gemv`."""
    from zigpass.tools.plot_bench import plot_bench

    plot_bench(data, output)


@plot.command()
def roofline(
    data: Data,
    output: Picture,
    bandwidth: Annotated[
        float | None, typer.Option(help="GB/s that the device reads; of an H200 4800, else the best that was seen.")
    ] = None,
) -> None:
    """Reached bandwidth over the bytes that a call reads, under what the device's memory gives."""
    from zigpass.tools.plot_roofline import plot_roofline

    plot_roofline(data, bandwidth, output)


if __name__ == "__main__":
    plot()
