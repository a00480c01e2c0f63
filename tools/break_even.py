"""From which sparsity on it pays to skip what is inactive."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def break_even(curve: Sequence[tuple[float, float]], limit: float) -> float | None:
    """The least sparsity where a curve of (sparsity, microseconds) is at or below `limit`; None where it never is."""
    if curve[0][1] <= limit:
        return curve[0][0]
    for (low, slow), (high, fast) in itertools.pairwise(curve):
        if fast <= limit:
            return low + (high - low) * (slow - limit) / (slow - fast)
    return None


def describe_break_even(value: float | None) -> str:
    """ "12%", or "never" for None and for infinity."""
    return "never" if value in (None, math.inf) else f"{value:.0%}"
