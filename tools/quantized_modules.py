"""Minimal modules that hold and use their weights as the libraries of the 4-bit formats do.

Written from the formats' public definitions, with packers of their own, so that recognizers can be tested without the
libraries. Their numbers are random, or those of a given `Groups`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclasses.dataclass(frozen=True)
class Groups:
    """codes [N, K] and zeros [N, G], int64; scales float32 [N, G]. The weight is scale * (code - zero)."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.codes, self.zeros, self.scales

    def dequantize(self) -> Tensor:
        """float32 [N, K]."""
        size = -(-self.codes.shape[1] // self.zeros.shape[1])
        group = torch.arange(self.codes.shape[1]) // size
        return self.scales[:, group] * (self.codes - self.zeros[:, group])


def random_codes(n: int, k: int, group_size: int, bits: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """codes, zeros (integers, int64) and scales: [N, K], [N, G], float32 [N, G]."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // group_size)
    codes = torch.randint(0, 1 << bits, (n, k), generator=generator)
    zeros = torch.randint(1, 1 << bits, (n, groups), generator=generator)
    return codes, zeros, torch.rand(n, groups, generator=generator) * 0.02 + 0.001


def round_to_groups(weight: Tensor, group_size: int) -> Groups:
    """A float weight [N, K] in 4 bits, to nearest; scales are float16 values."""
    n, k = weight.shape
    runs = weight.detach().float().view(n, k // group_size, group_size)
    low, high = runs.amin(-1).clamp(max=0), runs.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-4).half().float()
    zeros = (-low / scales).round().clamp(1, 15)  # not 0: files of GPTQ version 1 hold them less one
    codes = (runs / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
    return Groups(codes.view(n, k).long(), zeros.long(), scales)


def pack_along(values: Tensor, dim: int, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """Integers to int32 words along a dimension; value `order[i]` of a word lies at bit bits * i."""
    per_word = 32 // bits
    moved = values.movedim(dim, -1).long()
    moved = nn.functional.pad(moved, (0, -moved.shape[-1] % per_word))
    parts = moved.reshape(*moved.shape[:-1], -1, per_word)
    words = torch.zeros(parts.shape[:-1], dtype=torch.int64)
    for i, source in enumerate(order or range(per_word)):
        words |= parts[..., source] << (bits * i)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.to(torch.int32).movedim(-1, dim).contiguous()


class _Quantized(nn.Module):
    """Sizes and a bias; True is a random one."""

    bias: Tensor | None

    def __init__(self, n: int, k: int, bias: bool | Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = k, n
        self.register_buffer("bias", torch.randn(n).to(dtype) if bias is True else None if bias is False else bias)

    def add_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)


class GptqLinear(_Quantized):
    """qweight, qzeros, scales, g_idx; computes as AutoGPTQ's plain torch path does."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor

    def __init__(
        self,
        n: int = 48,
        k: int = 128,
        group_size: int = 32,
        *,
        version: int = 2,
        act_order: bool = False,
        bits: int = 4,
        bias: bool | Tensor | None = False,
        seed: int = 0,
        scale_dtype: torch.dtype = torch.float16,
        groups: Groups | None = None,
        g_idx: Tensor | None = None,
    ) -> None:
        super().__init__(n, k, bias, scale_dtype)
        codes, zeros, scales = random_codes(n, k, group_size, bits, seed) if groups is None else groups.parts
        if g_idx is None:
            g_idx = torch.arange(k) // group_size
            if act_order:
                g_idx = g_idx[torch.randperm(k, generator=torch.Generator().manual_seed(seed + 1))]
        self.bits, self.version = bits, version
        stored = zeros if version == 2 else zeros - 1
        self.register_buffer("qweight", pack_along(codes.T, 0, bits))
        self.register_buffer("qzeros", pack_along(stored.T, 1, bits))
        self.register_buffer("scales", scales.T.contiguous().to(scale_dtype))
        self.register_buffer("g_idx", g_idx.to(torch.int32))

    def weight(self) -> Tensor:
        """[K, N]."""
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32)
        mask = (1 << self.bits) - 1
        zeros = ((self.qzeros.unsqueeze(2) >> shifts) & mask).flatten(1)
        if self.version == 1:
            zeros = zeros + 1
        codes = ((self.qweight.unsqueeze(1) >> shifts[:, None]) & mask).flatten(0, 1)
        group = self.g_idx.long()
        return self.scales[group] * (codes - zeros[group]).to(self.scales.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.add_bias(x @ self.weight().to(x.dtype))


class AwqLinear(_Quantized):
    """qweight [K, N/8], qzeros [G, N/8] with the outputs of a word in AWQ's order."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor

    def __init__(
        self,
        n: int = 48,
        k: int = 128,
        group_size: int = 32,
        *,
        bias: bool | Tensor | None = False,
        seed: int = 0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(n, k, bias, torch.float16)
        codes, zeros, scales = random_codes(n, k, group_size, 4, seed) if groups is None else groups.parts
        self.w_bit, self.group_size = 4, group_size
        self.register_buffer("qweight", pack_along(codes.T, 1, 4, AWQ_ORDER))
        self.register_buffer("qzeros", pack_along(zeros.T, 1, 4, AWQ_ORDER))
        self.register_buffer("scales", scales.T.contiguous().half())

    def forward(self, x: Tensor) -> Tensor:
        zeros, scales = (
            part.repeat_interleave(self.group_size, 0) for part in (_outputs_in_order(self.qzeros), self.scales)
        )
        return self.add_bias(x @ ((_outputs_in_order(self.qweight) - zeros) * scales).to(x.dtype))


def _outputs_in_order(words: Tensor) -> Tensor:
    nibbles = (words.unsqueeze(2) >> torch.arange(0, 32, 4)) & 15
    ordered = torch.empty_like(nibbles)
    ordered[..., list(AWQ_ORDER)] = nibbles
    return ordered.flatten(1)


class HqqLinear(_Quantized):
    """W_q and meta; rows of W_q hold groups, and the high bits of a byte the first rows."""

    def __init__(
        self,
        n: int = 48,
        k: int = 128,
        group_size: int = 32,
        *,
        bits: int = 4,
        axis: int = 1,
        dtype: torch.dtype = torch.float16,
        seed: int = 0,
    ) -> None:
        super().__init__(n, k, None, dtype)
        codes, _, scales = random_codes(n, k, group_size, bits, seed)
        runs = codes.reshape(-1, group_size).to(torch.uint8)
        parts = runs.chunk(8 // bits)
        packed = torch.zeros_like(parts[0])
        for i, part in enumerate(parts):
            packed |= part << (8 - bits * (i + 1))
        zeros = torch.rand(runs.shape[0], 1, generator=torch.Generator().manual_seed(seed)) * (1 << bits)
        self.W_q = nn.Parameter(packed, requires_grad=False)
        self.meta = {
            "nbits": bits,
            "group_size": group_size,
            "shape": torch.Size((n, k)),
            "scale": scales.reshape(-1, 1).to(dtype),
            "zero": zeros.to(dtype),
            "axis": axis,
            "packing": f"{bits}bit_u8",
            "view_as_float": False,
            "compute_dtype": dtype,
            "quant_scale": False,
            "quant_zero": False,
        }

    def dequantize(self) -> Tensor:
        meta: dict[str, Any] = self.meta
        bits = meta["nbits"]
        rows = [(self.W_q.data >> (8 - bits * (i + 1))) & ((1 << bits) - 1) for i in range(8 // bits)]
        codes = torch.cat(rows).to(meta["compute_dtype"])
        weight: Tensor = ((codes - meta["zero"]) * meta["scale"]).reshape(meta["shape"])
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.dequantize().to(x.dtype).T
