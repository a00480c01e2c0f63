"""What every op means, in plain torch.

These functions are the definition that kernels, exported function bodies and tests are held to. Weights are
dequantized, products and sums are float32, the result is rounded once to x's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Layout
from .pack import unpack_tensors

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""The activations a `gated_mlp` may have, by name."""


COUNT_DTYPE = torch.int32
"""A threshold of this dtype is a count: the number of largest entries to read."""


def inactive(x: Tensor, threshold: Tensor) -> Tensor:
    """Which entries of x [..., K] are not read, bool of the same shape.

    With a float32 threshold of 1 or K entries, entry k is active unless |x_k| < threshold_k: a threshold of 0 keeps
    everything and NaN is active. With an int32 threshold of one entry, that many entries of each row are active, those
    of largest magnitude, NaN first; of equal ones those with the lowest index.
    """
    if threshold.dtype != COUNT_DTYPE:
        return x.abs() < threshold
    order = x.abs().argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1) >= threshold


def mask_inactive(x: Tensor, threshold: Tensor | None) -> Tensor:
    """x (float32 [..., K]) with 0 in the place of every entry that is not read."""
    return x if threshold is None else torch.where(inactive(x, threshold), 0.0, x)


def is_decode(x: Tensor) -> bool:
    """Sparsity applies to one row at a time; more rows (prefill, batches) run dense."""
    return x.numel() == x.shape[-1]


def linear(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str) -> Tensor:
    """y = W x + bias, reading only the active entries of x when x is one row.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        weight: packed tensors of W [N, K] in the order of `PackedWeight.tensors`.
        bias: [N] or None.
        threshold: float32 [1] or [K], int32 [1] (see `inactive`), or None for dense.
        layout: `Layout.spec` of the weight.

    Returns:
        [..., N] in x's dtype. Where an active entry of x is not finite, a device may return NaN for an infinity.
    """
    return _linear_float32(x.float(), weight, bias, threshold, layout).to(x.dtype)


def qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[str],
) -> list[Tensor]:
    """Several weights that share the input x and its threshold; one result per layout.

    Args:
        weights: the packed tensors of all weights, one after the other.
        biases: one entry per weight.
    """
    parts = split_weights(weights, layouts)
    return [linear(x, part, bias, threshold, spec) for part, bias, spec in zip(parts, biases, layouts, strict=True)]


def gated_mlp(
    x: Tensor,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    down: Sequence[Tensor],
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    threshold_in: Tensor | None,
    threshold_mid: Tensor | None,
    gate_layout: str,
    up_layout: str,
    down_layout: str,
    activation: str,
) -> Tensor:
    """W_down (act(W_gate x) * (W_up x)), or W_down act(W_up x) when `gate` is empty.

    The middle stays float32; `threshold_in` applies to x, `threshold_mid` to the input of the down projection.
    """
    act = ACTIVATIONS[activation]
    xf = x.float()
    middle = _linear_float32(xf, up, up_bias, threshold_in, up_layout)
    if gate:
        middle = act(_linear_float32(xf, gate, gate_bias, threshold_in, gate_layout)) * middle
    else:
        middle = act(middle)
    return _linear_float32(middle, down, down_bias, threshold_mid, down_layout).to(x.dtype)


def split_weights(weights: Sequence[Tensor], layouts: Sequence[str]) -> list[Sequence[Tensor]]:
    """Cut a flat list of packed tensors into one list per layout."""
    parts, start = [], 0
    for spec in layouts:
        end = start + Layout.parse(spec).num_tensors
        parts.append(weights[start:end])
        start = end
    return parts


def _linear_float32(
    x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str
) -> Tensor:
    dense = unpack_tensors(Layout.parse(layout), weight).dequantize()
    y = mask_inactive(x, threshold if is_decode(x) else None) @ dense.T
    return y if bias is None else y + bias.float()
