"""Packed linears whose weights stay in their file: models larger than memory, one linear at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zigpass.runtime import PackedWeight, ZigpassError

from .linear import ZigzagLinear
from .sites import Site


class StreamedLinear(ZigzagLinear):
    """As `ZigzagLinear`, but every use reads the packed tensors again and lets go of them; its buffers hold no data.

    Calibration and evaluation run many tokens per reading, so they get by. Decoding would read the file for every
    token.

    Args:
        read: gives the packed weight, anew at every call.
        bias: [N] or None; stays in memory.
        site: as for `ZigzagLinear`.
    """

    def __init__(self, read: Callable[[], PackedWeight], bias: Tensor | None, site: Site | None) -> None:
        packed = read()
        empty = tuple(torch.empty_like(tensor, device="meta") for tensor in packed.tensors)
        super().__init__(PackedWeight(packed.layout, empty), bias, site)
        self._read = read

    @property
    def weight_tensors(self) -> list[Tensor]:
        return list(self._read().tensors)

    def repack_(self, band: int | None) -> None:
        raise ZigpassError("a streamed weight stays as its file has it; load the model with from_pretrained(band=...)")
