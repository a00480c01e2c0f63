"""Telling packed models apart cheaply."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zigpass.runtime import PackedWeight

from .linear import find_linears

SAMPLED_COLUMNS = 8


def weight_fingerprint(model: nn.Module) -> str:
    """A hash over names, shapes and a sample of the codes of every packed linear.

    The sample is some columns of each weight, so the result does not depend on the band.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, linear in find_linears(model):
        packed = linear.packed
        digest.update(f"{name} {packed.layout.with_band(None).spec}\n".encode())
        digest.update(_sample_columns(packed).tobytes())
        if packed.layout.permuted:
            digest.update(packed.tensors[3].cpu().numpy().tobytes())
    return digest.hexdigest()


def _sample_columns(packed: PackedWeight) -> NDArray[np.int32]:
    layout, codes = packed.layout, packed.tensors[0]
    columns = torch.linspace(0, layout.k - 1, min(SAMPLED_COLUMNS, layout.k)).long()
    pieces, offset = [], 0
    for band in range(layout.num_bands):
        start, end = layout.band_rows(band)
        words = (end - start) // 128 * layout.words_per_block
        piece = codes[offset : offset + words * layout.k].view(layout.k, words)
        pieces.append(piece[columns.to(piece.device)])
        offset += words * layout.k
    return np.ascontiguousarray(torch.cat(pieces, 1).cpu().numpy())
