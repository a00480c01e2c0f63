"""A streamed histogram of activation magnitudes, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError

SHIFT = 16
"""Bits dropped from a float32's pattern: 128 bins per power of two, so a bin is at most 0.8 % wide."""
NUM_BINS = 1 << (31 - SHIFT)
FIRST_NOT_FINITE = 0xFF << (23 - SHIFT)
NOT_FINITE = "the activations hold NaN or infinite values; look at the layers up to there, or run in float32"


class MagnitudeHistogram:
    """Counts |x| in bins that are the leading bits of its float32 pattern.

    The bins cover every magnitude, so no range has to be known before; results do not depend on the order or the
    pieces in which values arrive. 256 kB each.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(NUM_BINS, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        """Count the entries of x.

        Raises:
            ZigpassError: x holds NaN or infinity.
        """
        bins = x.detach().float().abs().reshape(-1).view(torch.int32) >> SHIFT
        if bins.numel() and int(bins.max()) >= FIRST_NOT_FINITE:
            raise ZigpassError(NOT_FINITE)
        self.counts += torch.bincount(bins, minlength=NUM_BINS).cpu()

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def quantile(self, fraction: float) -> float:
        """The magnitude below which `fraction` of the entries lie; 0 for a fraction of 0.

        Raises:
            ZigpassError: nothing was counted.
        """
        if not self.total:
            raise ZigpassError("no activations were seen")
        if fraction <= 0:
            return 0.0
        below = torch.cumsum(self.counts, 0)
        wanted = fraction * self.total
        index = int(torch.searchsorted(below, wanted, side="left"))
        inside = int(self.counts[index])
        before = int(below[index]) - inside
        low, high = (_bin_edge(index + step) for step in (0, 1))
        return low + (high - low) * (wanted - before) / inside

    def fraction_below(self, magnitude: float) -> float:
        """Share of the entries below a magnitude, to the width of a bin."""
        if magnitude >= torch.finfo(torch.float32).max:
            return 1.0
        index = int(torch.tensor(magnitude, dtype=torch.float32).view(torch.int32)) >> SHIFT
        low, high = (_bin_edge(index + step) for step in (0, 1))
        inside = int(self.counts[index]) * (magnitude - low) / (high - low)
        return (int(self.counts[:index].sum()) + inside) / max(self.total, 1)

    def energy_below(self, fraction: float) -> float:
        """Mean over all entries of x^2 where it is dropped, when the smallest `fraction` of the entries is dropped.

        Raises:
            ZigpassError: nothing was counted.
        """
        if not self.total:
            raise ZigpassError("no activations were seen")
        edges = (torch.arange(FIRST_NOT_FINITE + 1, dtype=torch.int32) << SHIFT).view(torch.float32).double()
        middles = 0.5 * (edges[:-1] + edges[1:])
        counts = self.counts[:FIRST_NOT_FINITE].double()
        before = counts.cumsum(0) - counts
        dropped = (fraction * self.total - before).clamp(min=0).minimum(counts)
        return float((torch.where(dropped > 0, middles.square(), 0.0) * dropped).sum()) / self.total


def _bin_edge(index: int) -> float:
    return float(torch.tensor(index << SHIFT, dtype=torch.int32).view(torch.float32))
