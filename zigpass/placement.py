"""Where thresholds go: the sparsity of a site to a number its scores fall below, or to a count of entries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError
from zigpass.runtime.reference import COUNT_DTYPE

from .decode_like import DecodeLike
from .histogram import MagnitudeHistogram
from .observe import Readers, observe_sites
from .rules.rule import fold
from .sites import Site
from .thresholds import SiteThreshold


def place(sparsity: float, scores: MagnitudeHistogram, weights: Tensor | None) -> SiteThreshold:
    """The threshold below which this share of a site's scores lies.

    Args:
        weights: the rule's weight of every column, [K], or None.
    """
    number = scores.quantile(sparsity)
    return SiteThreshold(fold(number, weights), sparsity, scores.fraction_below(number))


def place_count(sparsity: float, features: int) -> SiteThreshold:
    """How many of a site's entries are read for every token."""
    count = features - round(sparsity * features)
    return SiteThreshold(torch.tensor([count], dtype=COUNT_DTYPE), sparsity, 1 - count / features)


def place_sparsely(
    run: DecodeLike, readers: Readers, sparsity: Mapping[str, float], weights: Mapping[str, Tensor]
) -> dict[str, SiteThreshold]:
    """Thresholds, by site, that give these sparsities while the model decodes; the sites that run have them then.

    One run, in which every threshold is placed when its activation arrives. So each site sees what the sparse sites
    before it leave, and on these tokens every site realizes its sparsity.

    Args:
        run: all windows side by side.
        weights: the rule's weight of every column, by site; none for a rule without.

    Raises:
        ZigpassError: activations that are not finite.
    """
    found: dict[str, SiteThreshold] = {}

    def place_arriving(site: Site, x: Tensor) -> None:
        if site.name in sparsity and site.name not in found:
            scores = MagnitudeHistogram()
            count_scores(scores, site, x, weights)
            found[site.name] = place(sparsity[site.name], scores, weights.get(site.name))
            site.set_threshold(found[site.name].threshold)

    with observe_sites(readers, place_arriving):
        run.run_decoder()
    return found


def count_scores(histogram: MagnitudeHistogram, site: Site, x: Tensor, weights: Mapping[str, Tensor]) -> None:
    """Add |x_k| * weight_k to a site's histogram.

    Raises:
        ZigpassError: activations that are not finite.
    """
    scores = x.float()
    if site.name in weights:
        scores = scores * weights[site.name].to(x.device)
    try:
        histogram.add(scores)
    except ZigpassError as error:
        raise ZigpassError(f"{site.name}: {error}") from error
