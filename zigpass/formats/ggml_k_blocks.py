"""GGML K block types: 256 inputs a block, whose groups have small integer scales under one or two fp16 factors.

An fp16 factor has 11 significant bits and a group scale at most 8, so their product is exact in float32 and not in
fp16. It is stored as the float32 scale of the group: lossless, at the price of 32 bits a group.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigpass.runtime import GroupScales, QuantizedWeight

SUPERBLOCK: Final = 256
Bytes = NDArray[np.uint8]
Integers = NDArray[np.integer[Any]]
"""uint8 too; NumPy's types of shifts and masks say no more."""


def read_q2_k(blocks: Bytes) -> QuantizedWeight:
    """Q2_K, 84 bytes: 16 bytes of 4-bit scales (low) and mins (high), 64 of codes, fp16 d and dmin.

    Groups of 16: w = d * scale * q - dmin * min.
    """
    scales = blocks[..., :16]
    codes = _two_bit_planes(blocks[..., 16:80])
    return _with_minimum(codes, 2, blocks[..., 80:84], scales & 15, scales >> 4, 16)


def read_q3_k(blocks: Bytes) -> QuantizedWeight:
    """Q3_K, 110 bytes: 32 bytes of third bits, 64 of low bits, 12 of 6-bit scales, fp16 d.

    Groups of 16: w = d * (scale - 32) * (q - 4).
    """
    third = np.stack([(blocks[..., :32] >> bit) & 1 for bit in range(8)], axis=-2)
    codes = _two_bit_planes(blocks[..., 32:96]) | _flat(third << 2)
    low, high = blocks[..., 96:104], blocks[..., 104:108]
    scales = np.concatenate([low & 15, low >> 4], axis=-1)
    scales = scales | np.concatenate([(high >> shift & 3) << 4 for shift in (0, 2, 4, 6)], axis=-1)
    factors = _factor(blocks[..., 108:110]) * (scales.astype(np.float32) - 32)
    return _with_zero(codes, 4, factors, 4, 16)


def read_q4_k(blocks: Bytes) -> QuantizedWeight:
    """Q4_K, 144 bytes: fp16 d and dmin, 12 bytes of 6-bit scales and mins, 128 of nibbles.

    Groups of 32: w = d * scale * q - dmin * min.
    """
    scales, mins = _six_bit_pairs(blocks[..., 4:16])
    return _with_minimum(_nibble_planes(blocks[..., 16:]), 4, blocks[..., :4], scales, mins, 32)


def read_q5_k(blocks: Bytes) -> QuantizedWeight:
    """Q5_K, 176 bytes: as Q4_K with 32 bytes of fifth bits before the nibbles; group g has bit g of each."""
    scales, mins = _six_bit_pairs(blocks[..., 4:16])
    fifth = np.stack([(blocks[..., 16:48] >> bit) & 1 for bit in range(8)], axis=-2)
    codes = _nibble_planes(blocks[..., 48:]) | _flat(fifth << 4)
    return _with_minimum(codes, 8, blocks[..., :4], scales, mins, 32)


def read_q6_k(blocks: Bytes) -> QuantizedWeight:
    """Q6_K, 210 bytes: 128 bytes of low nibbles, 64 of the two high bits, 16 signed scales, fp16 d.

    Groups of 16: w = d * scale * (q - 32).
    """
    low = blocks[..., :128].reshape(*blocks.shape[:2], 2, 64)
    low = np.concatenate([low & 15, low >> 4], axis=-1)  # in each half of 128: the low nibbles, then the high ones
    codes = _flat(low) | _two_bit_planes(blocks[..., 128:192]) << 4
    scales = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return _with_zero(codes, 8, _factor(blocks[..., 208:210]) * scales.astype(np.float32), 32, 16)


def _with_minimum(
    codes: Tensor, bits: int, halves: Bytes, scales: Integers, mins: Integers, group: int
) -> QuantizedWeight:
    """w = d * scale * q - dmin * min, with d and dmin in the four bytes `halves`."""
    scale = _factor(halves[..., :2]) * scales.astype(np.float32)
    minimum = -(_factor(halves[..., 2:4]) * mins.astype(np.float32))
    return QuantizedWeight(codes, bits, GroupScales(_rows(scale), _rows(minimum), "add_float", group))


def _with_zero(codes: Tensor, bits: int, scale: NDArray[np.float32], zero: int, group: int) -> QuantizedWeight:
    scales = _rows(scale)
    zeros = torch.full(scales.shape, zero, dtype=torch.uint8)
    return QuantizedWeight(codes, bits, GroupScales(scales, zeros, "sub_int", group))


def _factor(raw: Bytes) -> NDArray[np.float32]:
    """uint8 [N, B, 2] of fp16 -> float32 [N, B, 1]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _six_bit_pairs(raw: Bytes) -> tuple[Integers, Integers]:
    """uint8 [N, B, 12] -> eight scales and eight mins of 6 bits, each [N, B, 8].

    Bytes 0..3 and 4..7 hold scales and mins 0..3, with the two high bits of 4..7 on top; bytes 8..11 the low nibbles
    of scales (low) and mins (high) 4..7.
    """
    first, second, rest = raw[..., :4], raw[..., 4:8], raw[..., 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=-1)
    mins = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=-1)
    return scales, mins


def _nibble_planes(raw: Bytes) -> Tensor:
    """uint8 [N, B, 128] -> codes: every 32 bytes hold 32 inputs in the low nibbles and the next 32 in the high ones."""
    runs = raw.reshape(*raw.shape[:2], 4, 1, 32)
    return _flat(np.concatenate([runs & 15, runs >> 4], axis=-2))


def _two_bit_planes(raw: Bytes) -> Tensor:
    """uint8 [N, B, 64] -> codes: every 32 bytes hold four runs of 32 inputs, from the low bits up."""
    runs = raw.reshape(*raw.shape[:2], 2, 1, 32)
    return _flat(np.concatenate([runs >> shift & 3 for shift in (0, 2, 4, 6)], axis=-2))


def _flat(codes: Integers) -> Tensor:
    """uint8 [N, ...] -> [N, K]."""
    return torch.from_numpy(np.ascontiguousarray(codes).reshape(codes.shape[0], -1))


def _rows(values: NDArray[np.float32]) -> Tensor:
    """float32 [N, B, groups of a block] -> [N, groups]."""
    return torch.from_numpy(values.reshape(values.shape[0], -1))
