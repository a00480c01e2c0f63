"""Packed weights, inputs and comparisons that need no GPU; `operands` puts them on one."""

import torch

from tests.weights import random_weight
from zigpass.runtime import pack

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative error of a whole result: float32 sums in another order, else the rounding of the output."""


def packed(n, k, bits=4, scale_axis="in", band=None, seed=0, **scales):
    """Packed tensors and the layout's spec; scales near what a model has."""
    weight = random_weight(n, k, bits, scale_axis, seed=seed, **scales)
    for name in ("scale", "d", "dmin"):
        if hasattr(weight.scales, name):
            getattr(weight.scales, name).mul_(0.02)
    result = pack(weight, band)
    return list(result.tensors), result.layout.spec


def random_x(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(actual, expected, tolerance=None):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    a, e = actual.double(), expected.double()
    tolerance = tolerance or TOLERANCE[actual.dtype]
    error = (a - e).norm() / e.norm().clamp_min(1e-30)
    assert error <= tolerance, f"relative error {error:.3g}"
    assert (a - e).abs().max() <= 20 * tolerance * e.abs().max().clamp_min(1e-30)
