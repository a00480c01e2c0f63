"""The budget: how many weight bytes may stay unread, and what each site may contribute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from zigpass.runtime import ZigpassError

STEPS = 200
"""Bisection steps over levels spread by factors of two: far below the width of a histogram bin."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Sparsity by site name, and the name of the allocation it is from."""

    sparsity: dict[str, float]
    allocation: str


@dataclasses.dataclass(frozen=True)
class Budget:
    """A target over some sites.

    Attributes:
        target: share of the sites' code bytes that should not be read.
        num_bytes: code bytes of the weights that read each site.
        pinned: sparsity of sites that is given, not chosen.
        caps: most sparsity of every other site.

    Raises:
        ZigpassError: pins and caps do not leave room for the target.
    """

    target: float
    num_bytes: dict[str, int]
    pinned: dict[str, float]
    caps: dict[str, float]

    def __post_init__(self) -> None:
        least = self.mean({name: self.pinned.get(name, 0.0) for name in self.num_bytes})
        most = self.mean({name: self.pinned.get(name, self.caps[name]) for name in self.num_bytes})
        if not least - 1e-9 <= self.target <= most + 1e-9:
            raise ZigpassError(
                f"target_sparsity {self.target} cannot be met: pinned sites and max_sparsity allow"
                f" {least:.3f} to {most:.3f} of the bytes of the chosen sites"
            )

    def mean(self, sparsity: dict[str, float]) -> float:
        """Share of the bytes not read at these sparsities."""
        total = sum(self.num_bytes.values())
        return sum(self.num_bytes[name] * share for name, share in sparsity.items()) / total

    def fill(self, sparsity_at: Callable[[str, float], float]) -> dict[str, float]:
        """Raise one level over all sites until the target is met.

        Args:
            sparsity_at: sparsity of a site at a level above 0; grows with the level, up to 1. Pins and caps are
                applied here.
        """

        def at(level: float) -> dict[str, float]:
            free = {name: min(sparsity_at(name, level), self.caps[name]) for name in self.num_bytes}
            return {**free, **self.pinned}

        if self.target <= self.mean({name: self.pinned.get(name, 0.0) for name in self.num_bytes}):
            return {name: self.pinned.get(name, 0.0) for name in self.num_bytes}
        low, high = -100.0, 100.0  # exponents of 2: every magnitude that can occur lies between
        for _ in range(STEPS):
            middle = 0.5 * (low + high)
            if self.mean(at(2.0**middle)) < self.target:
                low = middle
            else:
                high = middle
            if high - low < 1e-12:
                break
        return at(2.0**high)
