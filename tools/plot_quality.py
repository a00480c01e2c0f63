"""A plot of quality against bytes read."""

from __future__ import annotations

from pathlib import Path

from zigpass.tools.figure import new_figure, save_figure
from zigpass.tools.measure_quality import Measurement, Row


def plot_quality(measurement: Measurement, path: Path) -> None:
    """Draw KL over the weight bytes read per token, one line per rule and allocation, and write it as PNG or SVG.

    Raises:
        ZigpassError: matplotlib is not installed.
    """
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in measurement.rows:
        lines.setdefault((row.rule, row.allocation), []).append(row)
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for (rule, allocation), rows in lines.items():
        rows = sorted(rows, key=lambda row: row.bytes_read)
        axes.errorbar(
            [row.bytes_read / 1e6 for row in rows],
            [row.kl for row in rows],
            yerr=[row.kl_error for row in rows],
            marker="o",
            markersize=3,
            capsize=2,
            linewidth=1.8 if allocation == "measured" and rule == "magnitude" else 1.0,
            label=f"{allocation}, {rule}",
        )
    axes.axvline(measurement.dense_bytes / 1e6, color="gray", linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("weight bytes read per token, MB (dotted: dense)")
    axes.set_ylabel("KL to the dense model, nats")
    axes.set_title(f"{measurement.model}, {measurement.held_out_text}")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)
