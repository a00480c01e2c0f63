"""A threshold that is a count: which entries are the largest, without waiting for the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import COUNT_DTYPE


def is_count(threshold: Tensor | None) -> bool:
    """Whether a threshold says how many entries are read, and not from which magnitude on."""
    return threshold is not None and threshold.dtype == COUNT_DTYPE


def keep_largest(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """x and a threshold per channel under which just the `count` entries that `reference.inactive` keeps are active.

    The count stays on the device: its value is compared, never read, so a CUDA graph follows it when it changes.

    Args:
        x: one row, [..., K].
        count: int32 [1].

    Returns:
        x with 0 in the place of the other entries (an infinite one would pass every threshold), and float32 [K]: 0 for
        the kept entries, infinity for the others.
    """
    order = x.abs().flatten().argsort(descending=True, stable=True)
    dropped = torch.arange(order.numel(), device=x.device) >= count
    dropped = torch.empty_like(dropped).scatter_(0, order, dropped)
    return x.masked_fill(dropped.view(x.shape), 0.0), torch.where(dropped, torch.inf, 0.0).float()
