"""How sparse every site really is, and how its activations are distributed, on a text or on one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from .decode_like import DecodeLike
from .graph_text import block_of
from .histogram import FIRST_NOT_FINITE, SHIFT, MagnitudeHistogram
from .linear import find_linears
from .observe import observe_sites, site_readers
from .sites import Site, SiteKind

BINS_PER_OCTAVE = 4
"""Of a profile: fine enough to see the shape, and a site's histogram stays below a hundred numbers."""


@dataclasses.dataclass(frozen=True)
class SiteProfile:
    """One site on the activations that were seen.

    Attributes:
        name, kind, features: of the site.
        layer: the number of its block, None outside of all blocks.
        readers: the linears that read it.
        threshold: median over the entries where there are several; 0 where the site is dense.
        target_sparsity: what its threshold was chosen for, None when it was set by hand.
        realized_sparsity: share of entries below the threshold.
        num_values: entries seen.
        edges: magnitudes between the bins, ascending, one more than there are counts.
        counts: entries in each bin; those smaller than the first edge, zeros above all, are left out.
    """

    name: str
    kind: SiteKind
    features: int
    layer: int | None
    readers: tuple[str, ...]
    threshold: float
    target_sparsity: float | None
    realized_sparsity: float
    num_values: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]


def profile_sites(model: nn.Module, runs: Iterable[Callable[[], object]]) -> list[SiteProfile]:
    """Run something and look at every activation that reaches a site; sites that are not reached are left out.

    Args:
        runs: each calls the model, such as those of `decode_steps(model, ids)`. What the iterable itself does between
            two runs is not looked at.
    """
    readers = site_readers(model)
    names = {linear: name for name, linear in find_linears(model)}
    histograms: dict[Site, MagnitudeHistogram] = {}
    inactive: dict[Site, int] = {}

    def count(site: Site, x: Tensor) -> None:
        histograms.setdefault(site, MagnitudeHistogram()).add(x)
        inactive[site] = inactive.get(site, 0) + int((x.abs() < site.threshold).sum())

    with torch.inference_mode():
        for run in runs:
            with observe_sites(readers, count):
                run()
    profiles = []
    for site, linears in readers.items():
        if site in histograms:
            total = histograms[site].total
            edges, counts = coarse(histograms[site])
            profiles.append(
                SiteProfile(
                    name=site.name,
                    kind=site.kind,
                    features=site.features,
                    layer=layer_of(site.name),
                    readers=tuple(names[linear] for linear in linears),
                    threshold=float(site.threshold.median()),
                    target_sparsity=site.target_sparsity,
                    realized_sparsity=inactive[site] / total,
                    num_values=total,
                    edges=tuple(edges),
                    counts=tuple(counts),
                )
            )
    return profiles


def decode_steps(model: nn.Module, windows: Tensor) -> Iterator[Callable[[], object]]:
    """Runs of the second half of each window int64 [B, T] as decoding does, thresholds applied to every row."""
    for ids in windows:
        yield DecodeLike(model, ids.unsqueeze(0), windows.shape[1] // 2, reference=False).run


def layer_of(name: str) -> int | None:
    """The number of the block: 3 for "model.layers.3.mlp.mlp_in"."""
    block = block_of(name)
    return int(block.rpartition(".")[2]) if block else None


def coarse(histogram: MagnitudeHistogram) -> tuple[list[float], list[int]]:
    """Edges and counts in wider bins, from the 0.01 % of the entries that are smallest to the largest one."""
    per_bin = (1 << (23 - SHIFT)) // BINS_PER_OCTAVE
    counts = histogram.counts[:FIRST_NOT_FINITE].reshape(-1, per_bin).sum(1)
    counts[0] = 0  # zeros have no place on a logarithmic axis
    if not int(counts.sum()):
        return [], []
    first = int(torch.searchsorted(counts.cumsum(0), int(1e-4 * int(counts.sum())), side="right"))
    last = int(counts.nonzero().max()) + 1
    edges = (torch.arange(first, last + 1, dtype=torch.int32) * per_bin << SHIFT).view(torch.float32)
    return edges.tolist(), counts[first:last].tolist()
