"""The tensors that ops return."""

from __future__ import annotations

import torch
from torch import Tensor

_empty_strided = torch._C._dynamo.guards._empty_strided_cpu  # type: ignore[attr-defined]  # not in the stubs
"""What Inductor's own code allocates with: 0.5 us where `Tensor.new_empty` takes 0.8."""


def new_results(x: Tensor, num_rows: int, sizes: list[int]) -> list[Tensor]:
    """Uninitialized tensors of x's dtype, and of its shape but for the last dimension, which is one of `sizes`."""
    if num_rows == 1:
        dimensions, dtype = x.dim(), x.dtype
        if dimensions == 2:
            return [_empty_strided((1, n), (n, 1), dtype) for n in sizes]
        if dimensions == 3:
            return [_empty_strided((1, 1, n), (n, n, 1), dtype) for n in sizes]
    return [x.new_empty((*x.shape[:-1], n)) for n in sizes]
