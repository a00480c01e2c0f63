"""The kernels of other libraries that `zigpass bench gemv|mlp` measures against, one row of bf16 input."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

import torch
import typer
from torch import Tensor

from zigpass.runtime import ZigpassError
from zigpass.tools.gpu_cases import ROTATED_BYTES, tinygemm

Peer = Callable[[int, Tensor], Tensor]
"""A product with copy number `index` of a weight: call(index, x [1, K]) -> [1, N]."""

GROUP = 128
GEMLITE_TOLERANCE = 0.05
"""Relative error of its product: 3.6 % at 4096x14336 on an H100, where it sums pieces of K in bfloat16; more is a
kernel that computes something else."""


def cublas_bf16(n: int, k: int) -> Peer:
    """cuBLAS on plain bf16 weights, over enough copies."""
    count = max(2, -(-ROTATED_BYTES // (n * k * 2)))
    copies = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    return lambda index, x: torch.nn.functional.linear(x, copies[index % count])


def gemlite(n: int, k: int) -> Peer:
    """gemlite's 4-bit weights with bf16 activations, group 128, over enough copies.

    It tunes itself at the first call for a shape, with the 17 candidates of its setting "fast" unless it ships a
    choice for the GPU.

    Raises:
        ZigpassError: its result is wrong.
    """
    from gemlite import forward_functional
    from gemlite.helper import A16Wn

    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device="cuda")
    scales = torch.rand(n, k // GROUP, device="cuda", dtype=torch.bfloat16) * 0.01 + 0.005
    zeros = torch.full_like(scales, 8)
    layer = A16Wn(device="cuda", dtype=torch.bfloat16).from_weights(codes, scales, zeros, 4, GROUP)
    tensors, numbers = layer.get_tensor_args(), layer.get_meta_args()
    x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)
    expected = x.float() @ ((codes.float() - 8) * scales.float().repeat_interleave(GROUP, 1)).T
    error = float((forward_functional(x, None, tensors, numbers).float() - expected).norm() / expected.norm())
    if not error < GEMLITE_TOLERANCE:
        raise ZigpassError(f"gemlite's product of {n}x{k} is off by {error:.1%}, so its time means nothing")
    count = max(2, -(-ROTATED_BYTES // (n * k // 2)))
    copies = [[tensor.clone() for tensor in tensors] for _ in range(count)]

    def call(index: int, x: Tensor) -> Tensor:
        result: Tensor = forward_functional(x, None, copies[index % count], numbers)
        return result

    return call


PEERS: Mapping[str, Callable[[int, int], Peer]] = {
    "tinygemm": tinygemm,
    "cublas_bf16": cublas_bf16,
    "gemlite": gemlite,
}
"""By the name that result files use."""
OPTIONAL = {"gemlite": "pip install gemlite"}
"""Peers of packages that may be missing, and what brings them."""


def time_peers(measure: Callable[[Callable[[int, int], Peer]], float]) -> dict[str, float | None]:
    """Microseconds of every peer as "<name>_us"; None, with a printed line, for one that is missing or fails.

    Args:
        measure: microseconds of a peer that it makes.
    """
    times: dict[str, float | None] = {}
    for name, make in PEERS.items():
        times[f"{name}_us"] = None
        if name in OPTIONAL and importlib.util.find_spec(name) is None:
            typer.echo(f"{name}: not installed, so not compared ({OPTIONAL[name]})")
        elif name in OPTIONAL:
            try:
                times[f"{name}_us"] = measure(make)
            except Exception as error:  # another library's; the other peers are still worth measuring
                typer.echo(f"{name}: failed, so not compared ({type(error).__name__}: {error})")
        else:
            times[f"{name}_us"] = measure(make)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return times
