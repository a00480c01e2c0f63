"""Scales along the inputs: round to nearest, with a search for the range of least squared error in each group."""

from __future__ import annotations

import torch
from torch import Tensor

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError

SHRINKS = tuple(1.0 - 0.025 * step for step in range(21))
"""Range factors tried by the search. On SmolLM2's up projections in groups of 128 the best factor is 0.80 to 1.0
(median 0.925) at 4 bits, 0.5 to 0.8 (median 0.6) at 2 bits, and always 1.0 at 8 bits (99.8 % of the groups)."""
MAX_CHUNK = 1 << 22
"""Weights handled at once: bounds the search to about 100 MB of scratch."""


def quantize_groups(
    weight: Tensor, bits: int, group_size: int, dtype: torch.dtype, shrinks: tuple[float, ...]
) -> QuantizedWeight:
    """Quantize float [N, K] in groups of inputs.

    Raises:
        ZigpassError: a scale does not fit `dtype`.
    """
    n, k = weight.shape
    groups = -(-k // group_size)
    codes = torch.empty(n, k, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(n, groups, dtype=dtype, device=weight.device)
    zero = torch.empty(n, groups, dtype=torch.uint8, device=weight.device)
    chunk = max(1, MAX_CHUNK // k)
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        for group in range(groups):
            columns = slice(group * group_size, (group + 1) * group_size)
            values = weight[rows, columns].float()
            best_scale, best_zero = search_group(values, bits, dtype, shrinks)
            codes[rows, columns] = encode(values, best_scale, best_zero, bits).to(torch.uint8)
            scale[rows, group], zero[rows, group] = best_scale.to(dtype), best_zero.to(torch.uint8)
    check_scales(scale)
    return QuantizedWeight(codes, bits, GroupScales(scale, zero, "sub_int", group_size))


def check_scales(scale: Tensor) -> None:
    """Raise `ZigpassError` where a scale became infinite in its dtype."""
    if not bool(torch.isfinite(scale).all()):
        name = str(scale.dtype).removeprefix("torch.")
        raise ZigpassError(f'a scale does not fit {name}; use scale_dtype="float32"')


def search_group(
    values: Tensor, bits: int, dtype: torch.dtype, shrinks: tuple[float, ...], importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Best s * (q - z) for each row of float32 [rows, inputs]: scale, as `dtype` holds it, and integer zero, float32.

    Args:
        importance: float32 [inputs], weight of each input's squared error; None for 1s.
    """
    max_code = (1 << bits) - 1
    low = values.amin(1).clamp(max=0)
    high = values.amax(1).clamp(min=0)
    best_error = torch.full_like(low, torch.inf)
    # Stays infinite where no candidate has a finite error, which the caller reports.
    best_scale, best_zero = torch.full_like(low, torch.inf), torch.zeros_like(low)
    for shrink in shrinks:
        # The scale is rounded to its stored dtype first, so the codes are the nearest ones for what is stored.
        scale = ((high - low) * (shrink / max_code)).to(dtype).float()
        zero = torch.where(scale > 0, -low * shrink / scale, 0.0).round().clamp(0, max_code)
        squares = (decode(encode(values, scale, zero, bits), scale, zero) - values).square()
        error = squares.sum(1) if importance is None else squares @ importance
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def encode(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, float32 [rows, inputs], for one scale and zero a row."""
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (values * inverse[:, None]).round_().add_(zero[:, None]).clamp_(0, (1 << bits) - 1)


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What the codes stand for."""
    return (codes - zero[:, None]) * scale[:, None]
