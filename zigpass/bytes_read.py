"""How many weight bytes one decoded token reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from zigpass.runtime import Layout

from .linear import ZigzagLinear, find_linears


def weight_bytes_per_token(model: nn.Module, sparsity: Mapping[str, float] | None = None) -> int:
    """Bytes of packed weights that decoding one token reads.

    A column that is not active saves its codes. Scales along the inputs belong to groups of columns and are read all
    the same; scales of the column form are saved with the column.

    Args:
        sparsity: realized sparsity by site name; None counts a dense read.
    """
    realized = sparsity or {}
    return round(
        sum(
            linear_bytes_read(linear, realized.get(linear.site.name, 0.0) if linear.site else 0.0)
            for _, linear in find_linears(model)
        )
    )


def linear_bytes_read(linear: ZigzagLinear, sparsity: float) -> float:
    """Bytes that one token reads of one packed weight when this share of its input entries is not active."""
    return bytes_read([tensor.nbytes for tensor in linear.weight_tensors], linear.layout, sparsity)


def bytes_read(sizes: Sequence[int], layout: Layout, sparsity: float) -> float:
    """As `linear_bytes_read`, from the bytes of the packed tensors, codes first."""
    if layout.scale_axis == "out":
        return sum(sizes) * (1 - sparsity)
    return sizes[0] * (1 - sparsity) + sum(sizes[1:])
