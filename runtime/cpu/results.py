"""The tensors that ops return."""

from __future__ import annotations

from torch import Tensor


def new_results(x: Tensor, num_rows: int, sizes: list[int]) -> list[Tensor]:
    """Uninitialized tensors of x's dtype, and of its shape but for the last dimension, which is one of `sizes`."""
    # Sizes as plain arguments take 0.8 us, as a tuple 1.3, and forming the tuple another 0.5.
    if num_rows == 1:
        dimensions = x.dim()
        if dimensions == 2:
            return [x.new_empty(1, n) for n in sizes]
        if dimensions == 3:
            return [x.new_empty(1, 1, n) for n in sizes]
    return [x.new_empty((*x.shape[:-1], n)) for n in sizes]
