"""Histograms of the activations of some layers, with their thresholds."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from zigpass.runtime import ZigpassError
from zigpass.sites import SITE_KINDS
from zigpass.tools.figure import new_figure, save_figure


def plot_histograms(sites: list[dict[str, Any]], layers: list[int] | None, path: Path) -> None:
    """A row per kind of site, a column per layer; what lies left of the dashed line is not read.

    Raises:
        ZigpassError: a layer that is not there.
    """
    present = sorted({site["layer"] for site in sites if site["layer"] is not None})
    chosen = layers or sorted({*present[:1], *present[len(present) // 2 : len(present) // 2 + 1], *present[-1:]})
    missing = [layer for layer in chosen if layer not in present]
    if missing or not chosen:
        raise ZigpassError(f"no sites in layer {missing or chosen}; there are {present or 'no layers'}")
    kinds = [kind for kind in SITE_KINDS if any(site["kind"] == kind for site in sites if site["layer"] in chosen)]
    figure = new_figure(3.1 * len(chosen) + 0.4, 1.8 * len(kinds) + 0.5)
    panels = figure.subplots(len(kinds), len(chosen), squeeze=False, sharex="row")
    for row, kind in zip(panels, kinds, strict=True):
        for axes, layer in zip(row, chosen, strict=True):
            for site in sites:
                if (site["kind"], site["layer"]) == (kind, layer) and site["counts"]:
                    _draw(axes, site)
            axes.set_title(f"layer {layer}, {kind}", fontsize=8)
            axes.set_yticks([])
            axes.tick_params(labelsize=7)
    figure.supxlabel("magnitude of an input entry; entries per octave", fontsize=9)
    save_figure(figure, path)


def _draw(axes: Any, site: dict[str, Any]) -> None:
    edges, counts = site["edges"], site["counts"]
    # The bins are of unequal width on a logarithmic axis.
    octaves = [math.log2(high / low) for low, high in itertools.pairwise(edges)]
    heights = [count / width for count, width in zip(counts, octaves, strict=True)]
    inactive = [0.5 * (low + high) < site["threshold"] for low, high in itertools.pairwise(edges)]
    widths = [high - low for low, high in itertools.pairwise(edges)]
    colors = ["#c9ced8" if one else "#6aa84f" for one in inactive]
    axes.bar(edges[:-1], heights, width=widths, align="edge", color=colors)
    axes.set_xscale("log")
    if site["threshold"] > 0:
        axes.axvline(site["threshold"], color="black", linewidth=0.8, linestyle="--")
    axes.text(0.02, 0.85, f"{site['realized_sparsity']:.0%} not read", transform=axes.transAxes, fontsize=7)
