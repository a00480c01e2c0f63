"""AWQ in the GEMM packing: `qweight`, `qzeros`, `scales`, as GPTQModel and AutoAWQ modules hold them.

qweight int32 [K, N / 8] and qzeros int32 [G, N / 8] hold eight outputs a word, in the order 0 2 4 6 1 3 5 7 from the
lowest bits; scales [G, N]. The weight is scale * (code - zero).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight

from .bits import unpack_words
from .recognizer import Recognizer, Recovered
from .verify import forward_of_identity

BITS: Final = 4
PER_WORD: Final = 8
NIBBLE_OF_OUTPUT: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word, from the lowest, holds output 0..7 of its eight."""


class Awq(Recognizer):
    name = "AWQ (GEMM packing)"
    kept = "4-bit codes, fp16/bf16 scales, integer zeros"
    exactness = "the module's output for unit vectors in its dtype, bit for bit"
    refused = "other widths than 4 bits, adapters, codes repacked for another kernel (GEMV, Marlin, ExLlama)"

    def recognizes(self, module: nn.Module) -> bool:
        if not all(isinstance(getattr(module, name, None), Tensor) for name in ("qweight", "qzeros", "scales")):
            return False
        source: Any = module
        shape, outputs = source.qweight.shape, source.scales.shape[-1]
        return len(shape) == 2 and (shape[1] * PER_WORD == outputs or "awq" in type(module).__name__.lower())

    def refusal(self, module: nn.Module) -> str | None:
        source: Any = module
        if getattr(source, "adapter", None):
            return "an adapter is attached to it; merge or remove the adapter first"
        bits = getattr(source, "bits", None) or getattr(source, "w_bit", None) or BITS
        if bits != BITS:
            return f"its codes have {bits} bits; AWQ has {BITS}"
        groups, n = source.scales.shape
        k = getattr(source, "in_features", source.qweight.shape[0])
        expected = ((k, n // PER_WORD), (groups, n // PER_WORD))
        if (tuple(source.qweight.shape), tuple(source.qzeros.shape)) != expected or k % groups:
            return (
                f"qweight {tuple(source.qweight.shape)} and qzeros {tuple(source.qzeros.shape)} are not the GEMM"
                f" packing, which has {expected[0]} and {expected[1]} here; load it with the plain torch backend"
            )
        return None

    def recover(self, module: nn.Module) -> Recovered:
        source: Any = module
        return Recovered(recover_awq(source.qweight, source.qzeros, source.scales), source.bias)

    def dequantize(self, module: nn.Module) -> Tensor:
        source: Any = module
        return forward_of_identity(module, source.qweight.shape[0], source.scales.dtype)


def recover_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> QuantizedWeight:
    """The weight of the three tensors."""
    codes, zeros = (_outputs_in_order(words).T.contiguous() for words in (qweight, qzeros))
    group_size = qweight.shape[0] // scales.shape[0]
    return QuantizedWeight(codes, BITS, GroupScales(scales.T.contiguous(), zeros, "sub_int", group_size))


def _outputs_in_order(words: Tensor) -> Tensor:
    """int32 [R, N / 8] -> uint8 [R, N]."""
    nibbles = unpack_words(words, BITS).view(words.shape[0], -1, PER_WORD)
    return nibbles[..., torch.tensor(NIBBLE_OF_OUTPUT, device=words.device)].flatten(1)
