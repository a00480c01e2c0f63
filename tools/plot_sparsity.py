"""Realized against target sparsity, by layer and kind of site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zigpass.runtime import ZigpassError
from zigpass.sites import SITE_KINDS
from zigpass.tools.figure import new_figure, save_figure


def read_sites(path: Path) -> list[dict[str, Any]]:
    """The sites in a file that `zigpass inspect --json` wrote.

    Raises:
        ZigpassError: another file, or one without activations.
    """
    try:
        sites: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["sites"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZigpassError(f"{path}: not a file of zigpass inspect --json ({error!r})") from error
    if not sites:
        raise ZigpassError(f"{path}: no activations in it; the model had no packed linears, or --windows was 0")
    return sites


def plot_sparsity(sites: list[dict[str, Any]], path: Path) -> None:
    """One panel per kind of site: bars are what was realized, steps what was asked for."""
    kinds = [kind for kind in SITE_KINDS if any(site["kind"] == kind for site in sites)]
    figure = new_figure(9, 1.9 * len(kinds) + 0.6)
    panels = figure.subplots(len(kinds), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        own = [site for site in sites if site["kind"] == kind]
        places = range(len(own))
        axes.bar(places, [100 * site["realized_sparsity"] for site in own], color="#6aa84f", label="realized")
        known = [(place, 100 * site["target_sparsity"]) for place, site in enumerate(own) if site["target_sparsity"]]
        if known:
            xs, ys = zip(*known, strict=True)
            axes.scatter(xs, ys, marker="_", s=90, color="black", linewidth=1.4, label="target")
        axes.set_xticks(places, [_label(site) for site in own], fontsize=7)
        axes.set_ylabel(f"{kind}, %")
        axes.set_ylim(0, 100)
        axes.grid(axis="y", linewidth=0.3)
    panels[0].legend(fontsize=8, loc="upper right")
    panels[-1].set_xlabel("layer")
    save_figure(figure, path)


def _label(site: dict[str, Any]) -> str:
    return str(site["layer"]) if site["layer"] is not None else site["name"].rpartition(".")[2]
