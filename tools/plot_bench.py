"""Speed against the best dense peer, over sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zigpass.tools.bench_files import Point, read_points
from zigpass.tools.figure import new_figure, save_figure


def plot_bench(paths: Sequence[Path], path: Path) -> None:
    """A panel per device and scale axis, a line per shape; 1 is the peer's time."""
    points = read_points(paths)
    panels = list(dict.fromkeys((point.device, point.scale_axis) for point in points))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (device, scale_axis) in zip(grid.flat, panels, strict=False):
        own = [point for point in points if (point.device, point.scale_axis) == (device, scale_axis)]
        for shape in dict.fromkeys(point.shape for point in own):
            best = _fastest([point for point in own if point.shape == shape])
            axes.plot(
                [100 * point.sparsity for point in best],
                [point.peer_microseconds / point.microseconds for point in best],
                marker="o", markersize=3, linewidth=1.2, label=shape,
            )  # fmt: skip
        axes.axhline(1, color="gray", linewidth=0.8, linestyle=":")
        axes.set_title(f"{device}, scale axis {scale_axis}", fontsize=9)
        axes.set_xlabel("sparsity, %")
        axes.set_ylabel("times as fast as the best dense peer", fontsize=8)
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=7)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _fastest(points: Sequence[Point]) -> list[Point]:
    """The fastest of what was measured more than once (other bands, other runs), by sparsity."""
    best: dict[float, Point] = {}
    for point in points:
        if point.sparsity not in best or point.microseconds < best[point.sparsity].microseconds:
            best[point.sparsity] = point
    return [best[sparsity] for sparsity in sorted(best)]
