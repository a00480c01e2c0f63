"""Reached bandwidth under the roof that the memory is: decoding does too little arithmetic per byte for any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zigpass.tools.bench_files import read_points
from zigpass.tools.figure import new_figure, save_figure

DATA_SHEETS = {"NVIDIA H200": 4800.0, "NVIDIA H100": 3350.0, "NVIDIA A100": 2039.0}
"""GB/s of the memory of the SXM boards, by the beginning of their name; NVIDIA's data sheets."""
MARKERS = {0.0: "o", 0.25: "^", 0.4: "D", 0.5: "s"}


def plot_roofline(paths: Sequence[Path], bandwidth: float | None, path: Path) -> None:
    """Bytes that a call reads against the bandwidth it reaches; the line is the time that reading alone would take.

    Args:
        bandwidth: GB/s of the device; None takes a data sheet's number, else the best that was reached.
    """
    points = read_points(paths)
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    devices = list(dict.fromkeys(point.device for point in points))
    for index, device in enumerate(devices):
        own = [point for point in points if point.device == device]
        known = next((value for name, value in DATA_SHEETS.items() if device.startswith(name)), None)
        roof = bandwidth or known or max(point.bandwidth for point in own) / 1e9
        origin = "given" if bandwidth else "data sheet" if known else "best reached"
        color = f"C{index}"
        axes.axhline(roof, color=color, linewidth=1, label=f"{device}: {roof:,.0f} GB/s ({origin})")
        for sparsity in sorted({point.sparsity for point in own}):
            some = [point for point in own if point.sparsity == sparsity]
            axes.scatter(
                [point.num_bytes / 1e6 for point in some],
                [point.bandwidth / 1e9 for point in some],
                marker=MARKERS.get(sparsity, "x"), s=22, facecolor="none", edgecolor=color,
                label=f"{sparsity:.0%} sparse",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("weight bytes that a call reads, MB")
    axes.set_ylabel("reached, GB/s")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=7)
    save_figure(figure, path)
