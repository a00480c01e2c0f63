"""GPTQ: `qweight`, `qzeros`, `scales` and `g_idx`, as GPTQModel and AutoGPTQ modules hold them.

qweight int32 [K * bits / 32, N], lowest bits first along the inputs; qzeros int32 [G, N * bits / 32], along the
outputs; scales [G, N]; g_idx [K], the group of each input. The weight is scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError

from .bits import WORD, unpack_words
from .recognizer import Recognizer, Recovered
from .verify import forward_of_identity, is_same

BITS: Final = (2, 4, 8)


class Gptq(Recognizer):
    name = "GPTQ (v1, v2; desc_act)"
    kept = "codes of 2, 4 or 8 bits, fp16/bf16 scales, integer zeros; act-order as a column permutation"
    exactness = "the module's own dequantization (or its output for unit vectors) in its dtype, bit for bit"
    refused = "3-bit codes, groups of unequal sizes in g_idx, adapters, codes repacked for another kernel"

    def recognizes(self, module: nn.Module) -> bool:
        names = ("qweight", "qzeros", "scales", "g_idx")
        if not all(isinstance(getattr(module, name, None), Tensor) for name in names):
            return False
        tensors: Any = module
        return bool(tensors.qweight.dim() == 2 and tensors.qweight.shape[1] == tensors.scales.shape[1])

    def refusal(self, module: nn.Module) -> str | None:
        source: Any = module
        if getattr(source, "adapter", None):
            return "an adapter is attached to it; merge or remove the adapter first"
        bits = source.qweight.shape[0] * WORD // source.g_idx.shape[0]
        if getattr(source, "bits", bits) not in BITS or bits not in BITS:
            return f"its codes have {getattr(source, 'bits', bits)} bits; supported are {', '.join(map(str, BITS))}"
        groups, n = source.scales.shape
        if source.qweight.dtype != torch.int32 or source.qzeros.shape != (groups, n * bits // WORD):
            return (
                f"its tensors are not those of a GPTQ checkpoint (qweight {source.qweight.dtype}"
                f" {tuple(source.qweight.shape)}, qzeros {tuple(source.qzeros.shape)}, scales"
                f" {tuple(source.scales.shape)}); load it with the plain torch backend"
            )
        return None

    def recover(self, module: nn.Module) -> Recovered:
        source: Any = module
        candidates = list(recover_gptq(source.qweight, source.qzeros, source.scales, source.g_idx))
        own = self.dequantize(module)
        # Files of version 1 hold zero - 1; in memory it depends on the library which of the two a module holds, and
        # what it says about it is not reliable. What it computes with is.
        fitting = (weight for weight in candidates if is_same(self, weight, own))
        return Recovered(next(fitting, candidates[0]), source.bias)

    def dequantize(self, module: nn.Module) -> Tensor:
        source: Any = module
        own = getattr(source, "dequantize_weight", None)
        if callable(own):
            with torch.no_grad():
                weight: Tensor = own()
            return weight.T
        return forward_of_identity(module, source.g_idx.shape[0], source.scales.dtype)


def recover_gptq(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor) -> Iterator[QuantizedWeight]:
    """The weight in each way that zeros are stored: as they are (version 2), less one (version 1), less one modulo
    2**bits (version 1 of some writers)."""
    groups, n = scales.shape
    k = g_idx.shape[0]
    bits = qweight.shape[0] * WORD // k
    codes = unpack_words(qweight.T, bits)[:, :k]
    zeros = unpack_words(qzeros, bits)[:, :n].T.contiguous()
    order, group_size = group_order(g_idx, groups)
    perm = None
    if order is not None:
        codes, perm = codes[:, order], order.to(torch.int32)
    scale = scales.T.contiguous()
    for zero in (zeros, zeros + 1, (zeros + 1) & ((1 << bits) - 1)):
        yield QuantizedWeight(codes, bits, GroupScales(scale, zero, "sub_int", group_size), perm)


def group_order(g_idx: Tensor, groups: int) -> tuple[Tensor | None, int]:
    """The order of the inputs that makes every group one run, None where they are in it; and the group size.

    Raises:
        ZigpassError: the groups do not have one size.
    """
    k = g_idx.shape[0]
    counts = torch.bincount(g_idx.long().clamp(min=0))
    group_size = int(counts.max())
    expected = torch.arange(k, device=g_idx.device) // group_size
    if len(counts) <= groups and torch.equal(g_idx.long(), expected):
        return None, group_size
    order = g_idx.long().argsort(stable=True)
    if len(counts) > groups or not torch.equal(g_idx.long()[order], expected):
        raise ZigpassError(
            f"g_idx puts between {int(counts.min())} and {group_size} inputs in its {len(counts)} groups; zigpass needs"
            f" {groups} groups of one size, only the last one shorter"
        )
    return order, group_size
