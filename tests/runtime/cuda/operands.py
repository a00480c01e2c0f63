"""Operands on the GPU and comparisons, for the tests of the CUDA operators."""

import pytest
import torch

from zigpass.runtime import reference

from . import comparisons
from .comparisons import assert_close

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

DEVICE = torch.device("cuda")
PREFILL_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""A GEMM also rounds the weight to x's dtype."""


def packed(n, k, bits=4, scale_axis="in", band=None, seed=0, **scales):
    """As `comparisons.packed`, on the GPU."""
    tensors, spec = comparisons.packed(n, k, bits, scale_axis, band, seed, **scales)
    return [tensor.to(DEVICE) for tensor in tensors], spec


def random_x(*shape, dtype=torch.float32, seed=1):
    return comparisons.random_x(*shape, dtype=dtype, seed=seed).to(DEVICE)


def threshold_for(x, sparsity):
    """A threshold in a gap between magnitudes, so that rounding flips no entry."""
    magnitudes = x.abs().float().flatten().sort().values
    count = round(sparsity * magnitudes.numel())
    if count == 0:
        return torch.zeros(1, device=x.device)
    if count >= magnitudes.numel():
        return (magnitudes[-1:] + 1) * 2
    return (magnitudes[count - 1 : count] + magnitudes[count : count + 1]) / 2


def check_linear(x, weight, spec, threshold=None, bias=None, tolerance=None):
    actual = torch.ops.zigpass.linear(x, weight, bias, threshold, spec)
    assert torch.equal(actual, torch.ops.zigpass.linear(x, weight, bias, threshold, spec)), "two runs differ"
    assert_close(actual, reference.linear(x, weight, bias, threshold, spec), tolerance)


def mlp_operands(k=1024, middle=2816, bits=4, axes=("in", "in", "in"), bands=(512, 512, 512), gate=True, biases=False):
    g, u = (packed(middle, k, bits, axis, band, seed=s) for s, axis, band in zip((1, 2), axes, bands, strict=False))
    d = packed(k, middle, bits, axes[2], bands[2], seed=3)
    bias = [random_x(size, seed=s) * 0.1 if biases else None for s, size in enumerate((middle, middle, k))]
    if not gate:
        g, bias[0] = ([], ""), None
    return (g[0], u[0], d[0], *bias), (g[1], u[1], d[1])
