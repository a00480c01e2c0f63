"""Telling packed models apart cheaply."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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


def thresholds_fingerprint(thresholds: Mapping[str, Tensor]) -> str:
    """A hash over thresholds by site name, in any order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, threshold in sorted(thresholds.items()):
        digest.update(f"{name} {threshold.dtype} {threshold.numel()}\n".encode())
        digest.update(threshold.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def sparsity_fingerprint(sparsity: Mapping[str, float]) -> str:
    """A hash over sparsities by site name, in any order."""
    return hashlib.blake2b(json.dumps(sparsity, sort_keys=True).encode(), digest_size=16).hexdigest()


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
