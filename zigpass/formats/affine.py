"""Integer codes with integer zeros, whichever range they are counted from."""

from __future__ import annotations

import torch
from torch import Tensor

from zigpass.runtime import GroupScales, QuantizedWeight

from .bits import stored_bits


def affine_weight(
    codes: Tensor, scale: Tensor, zero: Tensor | None, block: tuple[int, int], low: int, bits: int
) -> QuantizedWeight:
    """scale * (code - zero), both counted from `low`, the smallest code.

    Args:
        codes: int8 or uint8 [N, K].
        scale, zero: one entry per block of `block` = (rows, inputs); zero None means 0.
        bits: width of a code.
    """
    n, k = codes.shape
    shape = (-(-n // block[0]), -(-k // block[1]))
    zeros = torch.zeros(shape, dtype=torch.int32, device=codes.device) if zero is None else zero.reshape(shape)
    row = torch.arange(n, device=codes.device) // block[0]  # rows of a taller block get a copy each
    return QuantizedWeight(
        codes.view(torch.uint8) + (-low & 0xFF),  # modulo 256: two's complement and an offset meet there
        stored_bits(bits),
        GroupScales(
            scale.reshape(shape)[row],
            (zeros.to(torch.int32) - low).to(torch.uint8)[row],
            "sub_int",
            min(block[1], k),
        ),
    )
