"""Minimal modules that hold and use their weights as the libraries of the 4-bit formats do.

Written from the formats' public definitions, with packers of their own: nothing here calls zigpass.
"""

import torch
from torch import Tensor, nn

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def random_codes(n: int, k: int, group_size: int, bits: int = 4, seed: int = 0):
    """codes, zeros (integers, int64) and scales: [N, K], [N, G], float32 [N, G]."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // group_size)
    codes = torch.randint(0, 1 << bits, (n, k), generator=generator)
    zeros = torch.randint(1, 1 << bits, (n, groups), generator=generator)
    return codes, zeros, torch.rand(n, groups, generator=generator) * 0.02 + 0.001


def pack_along(values: Tensor, dim: int, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
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


class GptqLinear(nn.Module):
    """qweight, qzeros, scales, g_idx; computes as AutoGPTQ's plain torch path does."""

    def __init__(
        self,
        n=48,
        k=128,
        group_size=32,
        *,
        version=2,
        act_order=False,
        bits=4,
        bias=False,
        seed=0,
        scale_dtype=torch.float16,
    ):
        super().__init__()
        codes, zeros, scales = random_codes(n, k, group_size, bits, seed)
        g_idx = torch.arange(k) // group_size
        if act_order:
            g_idx = g_idx[torch.randperm(k, generator=torch.Generator().manual_seed(seed + 1))]
        self.in_features, self.out_features, self.bits, self.version = k, n, bits, version
        stored = zeros if version == 2 else zeros - 1
        self.register_buffer("qweight", pack_along(codes.T, 0, bits))
        self.register_buffer("qzeros", pack_along(stored.T, 1, bits))
        self.register_buffer("scales", scales.T.contiguous().to(scale_dtype))
        self.register_buffer("g_idx", g_idx.to(torch.int32))
        self.register_buffer("bias", torch.randn(n).to(scale_dtype) if bias else None)

    def weight(self):
        """[K, N]."""
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32)
        mask = (1 << self.bits) - 1
        zeros = ((self.qzeros.unsqueeze(2) >> shifts) & mask).flatten(1)
        if self.version == 1:
            zeros = zeros + 1
        codes = ((self.qweight.unsqueeze(1) >> shifts[:, None]) & mask).flatten(0, 1)
        group = self.g_idx.long()
        return self.scales[group] * (codes - zeros[group]).to(self.scales.dtype)

    def forward(self, x):
        y = x @ self.weight().to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class AwqLinear(nn.Module):
    """qweight [K, N/8], qzeros [G, N/8] with the outputs of a word in AWQ's order."""

    def __init__(self, n=48, k=128, group_size=32, *, bias=False, seed=0):
        super().__init__()
        codes, zeros, scales = random_codes(n, k, group_size, 4, seed)
        self.in_features, self.out_features, self.w_bit, self.group_size = k, n, 4, group_size
        self.register_buffer("qweight", pack_along(codes.T, 1, 4, AWQ_ORDER))
        self.register_buffer("qzeros", pack_along(zeros.T, 1, 4, AWQ_ORDER))
        self.register_buffer("scales", scales.T.contiguous().half())
        self.register_buffer("bias", torch.randn(n).half() if bias else None)

    def forward(self, x):
        def outputs(words):
            nibbles = (words.unsqueeze(2) >> torch.arange(0, 32, 4)) & 15
            ordered = torch.empty_like(nibbles)
            ordered[..., list(AWQ_ORDER)] = nibbles
            return ordered.flatten(1)

        zeros, scales = (part.repeat_interleave(self.group_size, 0) for part in (outputs(self.qzeros), self.scales))
        y = x @ ((outputs(self.qweight) - zeros) * scales).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class HqqLinear(nn.Module):
    """W_q and meta; rows of W_q hold groups, and the high bits of a byte the first rows."""

    def __init__(self, n=48, k=128, group_size=32, *, bits=4, axis=1, dtype=torch.float16, seed=0):
        super().__init__()
        codes, _, scales = random_codes(n, k, group_size, bits, seed)
        runs = codes.reshape(-1, group_size).to(torch.uint8)
        parts = runs.chunk(8 // bits)
        packed = torch.zeros_like(parts[0])
        for i, part in enumerate(parts):
            packed |= part << (8 - bits * (i + 1))
        zeros = torch.rand(runs.shape[0], 1, generator=torch.Generator().manual_seed(seed)) * (1 << bits)
        self.in_features, self.out_features, self.bias = k, n, None
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

    def dequantize(self):
        bits, meta = self.meta["nbits"], self.meta
        rows = [(self.W_q.data >> (8 - bits * (i + 1))) & ((1 << bits) - 1) for i in range(8 // bits)]
        codes = torch.cat(rows).to(meta["compute_dtype"])
        return ((codes - meta["zero"]) * meta["scale"]).reshape(meta["shape"])

    def forward(self, x):
        return x @ self.dequantize().to(x.dtype).T
