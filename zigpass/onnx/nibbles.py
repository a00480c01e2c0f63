"""Two 4-bit values a byte: ONNX's UINT4, and how it becomes the blocks of the zigzag layout.

UINT4 [K, N] holds the rows of one input side by side, as a superblock of one band does; only the order inside of a
block of 128 rows differs. So 4-bit codes go from one to the other byte by byte, never one value a byte.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from zigpass.runtime import Layout

_FIELD_BYTES = 8
"""Bytes of UINT4 that hold the 16 rows of one bit field of a block."""


def pack_nibbles(values: Tensor) -> Tensor:
    """uint8 of any shape, each below 16 -> uint8 [ceil(size / 2)], the first of a pair in the low half (ONNX UINT4)."""
    flat = values.reshape(-1)
    flat = pad(flat, (0, flat.numel() % 2))
    return flat[0::2] | (flat[1::2] << 4)


def unpack_nibbles(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_nibbles`."""
    flat = torch.stack([packed & 15, packed >> 4], -1).reshape(-1)
    return flat[: math.prod(shape)].view(shape)


def moves_by_bytes(layout: Layout, stored_rows: int) -> bool:
    """Whether the two functions below know the codes of a layout."""
    return layout.bits == 4 and layout.num_bands == 1 and stored_rows % 2 == 0


def blocks_to_nibbles(words: Tensor, layout: Layout, stored_rows: int) -> Tensor:
    """Packed codes int32 [num_code_words] -> UINT4 [K, stored_rows] as uint8 [K * stored_rows / 2]."""
    # Word d, byte j of a block holds rows 32 j + d and 32 j + 16 + d; byte e of field f in UINT4 rows 16 f + 2 e, + 1.
    bytes_ = words.view(torch.uint8).view(layout.k, -1, _FIELD_BYTES, 2, 4)  # [K, blocks, e, parity of d, j]
    even, odd = bytes_[..., 0, :].transpose(2, 3), bytes_[..., 1, :].transpose(2, 3)  # [K, blocks, j, e]
    low, high = (even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)
    rows = torch.stack([low, high], 3).view(layout.k, -1)
    return rows[:, : stored_rows // 2].reshape(-1)


def nibbles_to_blocks(packed: Tensor, layout: Layout, stored_rows: int) -> Tensor:
    """The inverse of `blocks_to_nibbles`; rows beyond N get the code 0."""
    rows = pad(packed.view(layout.k, stored_rows // 2), (0, (layout.padded_n - stored_rows) // 2))
    if stored_rows > layout.n:
        rows = _without_rows_after(rows, layout.n)
    pairs = rows.view(layout.k, -1, 4, 2, _FIELD_BYTES)  # [K, blocks, j, field of the pair, e]
    low, high = pairs[..., 0, :], pairs[..., 1, :]
    even, odd = (low & 15) | (high << 4), (low >> 4) | (high & 0xF0)  # [K, blocks, j, e]
    return torch.stack([even, odd], -1).permute(0, 1, 3, 4, 2).reshape(-1).view(torch.int32)


def _without_rows_after(rows: Tensor, n: int) -> Tensor:
    """uint8 [K, padded_n / 2] with zeros from row n on."""
    rows = rows.clone()
    rows[:, (n + 1) // 2 :] = 0
    if n % 2:
        rows[:, n // 2] &= 15
    return rows
