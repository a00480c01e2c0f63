"""Where thresholds go: the sparsity of a site to a number its scores fall below, or to a count of entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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


class Placed(NamedTuple):
    """Where the threshold of one site is.

    Attributes:
        number: what scores are compared with.
        below: share of the counted scores that lie below it.
    """

    number: float
    below: float

    def threshold(self, sparsity: float, weights: Tensor | None) -> SiteThreshold:
        """The threshold itself.

        Args:
            sparsity: the share that was asked for.
            weights: the rule's weight of every column, [K], or None.
        """
        return SiteThreshold(fold(self.number, weights), sparsity, self.below)


def place(sparsity: float, scores: MagnitudeHistogram) -> Placed:
    """The number below which this share of a site's scores lies."""
    number = scores.quantile(sparsity)
    return Placed(number, scores.fraction_below(number))


def place_count(sparsity: float, features: int) -> SiteThreshold:
    """How many of a site's entries are read for every token."""
    count = features - round(sparsity * features)
    return SiteThreshold(torch.tensor([count], dtype=COUNT_DTYPE), sparsity, 1 - count / features)


def place_sparsely(
    run: DecodeLike, readers: Readers, sparsity: Mapping[str, float], weights: Mapping[str, Tensor]
) -> dict[str, Placed]:
    """Where the threshold of each site is that gives its sparsity while the model decodes; sites that run have it then.

    One run, in which every threshold is placed when its activation arrives. So each site sees what the sparse sites
    before it leave, and on these tokens every site realizes its sparsity.

    Args:
        run: all windows side by side.
        weights: the rule's weight of every column, by site; none for a rule without.

    Raises:
        ZigpassError: activations that are not finite.
    """
    found: dict[str, Placed] = {}

    def place_arriving(site: Site, x: Tensor) -> None:
        if site.name in sparsity and site.name not in found:
            scores = MagnitudeHistogram()
            count_scores(scores, site, x, weights)
            found[site.name] = placed = place(sparsity[site.name], scores)
            site.set_threshold(placed.threshold(sparsity[site.name], weights.get(site.name)).threshold)

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
