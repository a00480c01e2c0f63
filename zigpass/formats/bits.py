"""Taking packed bits apart, without the int32 copies eight times the size of the codes."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError
from zigpass.runtime.layout import SUPPORTED_BITS

WORD: Final = 32


def stored_bits(bits: int) -> int:
    """The narrowest code width of the zigzag layout that holds codes of `bits`."""
    return next(width for width in SUPPORTED_BITS if width >= bits)


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """int32 [..., W] -> uint8 [..., W * 32 / bits], lowest bits of a word first; bits 2, 4 or 8."""
    if words.dtype != torch.int32:
        raise ZigpassError(f"packed words are {words.dtype}, expected torch.int32")
    return unpack_bytes(words.contiguous().view(torch.uint8), bits)


def unpack_bytes(data: Tensor, bits: int) -> Tensor:
    """uint8 [..., B] -> uint8 [..., B * 8 / bits], lowest bits of a byte first; bits 1, 2, 4 or 8."""
    if bits == 8:
        return data
    mask = (1 << bits) - 1
    return torch.stack([(data >> shift) & mask for shift in range(0, 8, bits)], -1).flatten(-2)
