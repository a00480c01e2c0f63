"""GGML block types with 32 inputs a block, relaid as they are, and the table of all types that are.

A block holds consecutive inputs of one output row. Source of the byte formats: the GGUF specification and the `gguf`
package, whose dequantization every reader matches bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError

from .ggml_k_blocks import read_q2_k, read_q3_k, read_q4_k, read_q5_k, read_q6_k

BLOCK: Final = 32
Bytes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class BlockType:
    """A GGML type that is relaid.

    Attributes:
        size: bytes of a block.
        read: uint8 [N, blocks of a row, size] -> codes and scales.
        kept: what becomes of it, for the support table.
    """

    size: int
    read: Callable[[Bytes], QuantizedWeight]
    kept: str

    @property
    def table_cells(self) -> tuple[str, str, str]:
        """What is kept, what it is compared with and what is refused."""
        return self.kept, "`gguf.dequantize` (float32), bit for bit", "damaged files, architectures not listed"


def _half(raw: Bytes) -> Tensor:
    """uint8 [N, G, 2] -> float16 [N, G]."""
    return torch.from_numpy(np.ascontiguousarray(raw).view(np.float16)[..., 0])


def _nibbles(raw: Bytes) -> Tensor:
    """uint8 [N, G, 16] -> codes uint8 [N, 32 * G]: the low nibbles are inputs 0..15, the high ones 16..31."""
    codes = np.concatenate([raw & 15, raw >> 4], axis=-1)
    return torch.from_numpy(codes.reshape(raw.shape[0], -1))


def _with_fifth_bit(raw: Bytes, high: Bytes) -> Tensor:
    """As `_nibbles`, with a fifth bit for input i at bit i of `high`, uint8 [N, G, 4]."""
    fifth = np.unpackbits(high, axis=-1, bitorder="little").reshape(high.shape[0], -1)
    return _nibbles(raw) | torch.from_numpy(fifth << 4)


def _constant_zero(scale: Tensor, zero: int) -> Tensor:
    return torch.full(scale.shape, zero, dtype=torch.uint8)


def read_q4_0(blocks: Bytes) -> QuantizedWeight:
    """Q4_0, 18 bytes: fp16 d, 16 bytes of nibbles; w = d * (q - 8)."""
    scale = _half(blocks[..., :2])
    scales = GroupScales(scale, _constant_zero(scale, 8), "sub_int", BLOCK)
    return QuantizedWeight(_nibbles(blocks[..., 2:]), 4, scales)


def read_q4_1(blocks: Bytes) -> QuantizedWeight:
    """Q4_1, 20 bytes: fp16 d, fp16 m, 16 bytes of nibbles; w = d * q + m."""
    scales = GroupScales(_half(blocks[..., :2]), _half(blocks[..., 2:4]), "add_float", BLOCK)
    return QuantizedWeight(_nibbles(blocks[..., 4:]), 4, scales)


def read_q5_0(blocks: Bytes) -> QuantizedWeight:
    """Q5_0, 22 bytes: fp16 d, 4 bytes of fifth bits, 16 bytes of nibbles; w = d * (q - 16)."""
    scale = _half(blocks[..., :2])
    codes = _with_fifth_bit(blocks[..., 6:], blocks[..., 2:6])
    return QuantizedWeight(codes, 8, GroupScales(scale, _constant_zero(scale, 16), "sub_int", BLOCK))


def read_q5_1(blocks: Bytes) -> QuantizedWeight:
    """Q5_1, 24 bytes: fp16 d, fp16 m, 4 bytes of fifth bits, 16 bytes of nibbles; w = d * q + m."""
    codes = _with_fifth_bit(blocks[..., 8:], blocks[..., 4:8])
    scales = GroupScales(_half(blocks[..., :2]), _half(blocks[..., 2:4]), "add_float", BLOCK)
    return QuantizedWeight(codes, 8, scales)


def read_q8_0(blocks: Bytes) -> QuantizedWeight:
    """Q8_0, 34 bytes: fp16 d, 32 signed bytes; w = d * q. The codes are stored offset by 128."""
    scale = _half(blocks[..., :2])
    codes = torch.from_numpy((blocks[..., 2:] ^ 0x80).reshape(blocks.shape[0], -1))
    return QuantizedWeight(codes, 8, GroupScales(scale, _constant_zero(scale, 128), "sub_int", BLOCK))


READERS: Final[dict[str, BlockType]] = {
    "Q4_0": BlockType(18, read_q4_0, "4-bit codes, fp16 scale, zero 8"),
    "Q4_1": BlockType(20, read_q4_1, "4-bit codes, fp16 scale and minimum"),
    "Q5_0": BlockType(22, read_q5_0, "5-bit codes in 8 bits, fp16 scale, zero 16"),
    "Q5_1": BlockType(24, read_q5_1, "5-bit codes in 8 bits, fp16 scale and minimum"),
    "Q8_0": BlockType(34, read_q8_0, "8-bit codes, fp16 scale"),
    "Q2_K": BlockType(84, read_q2_k, "2-bit codes; d * scale and dmin * min per 16 inputs as float32, exact"),
    "Q3_K": BlockType(110, read_q3_k, "3-bit codes in 4 bits; d * scale per 16 inputs as float32, exact"),
    "Q4_K": BlockType(144, read_q4_k, "4-bit codes; d * scale and dmin * min per 32 inputs as float32, exact"),
    "Q5_K": BlockType(176, read_q5_k, "5-bit codes in 8 bits; d * scale and dmin * min per 32 as float32, exact"),
    "Q6_K": BlockType(210, read_q6_k, "6-bit codes in 8 bits; d * scale per 16 inputs as float32, exact"),
}
"""By type name."""


def read_blocks(type_name: str, data: Bytes) -> QuantizedWeight:
    """Codes and scales of a matrix.

    Args:
        type_name: the GGML type, such as "Q4_1".
        data: uint8 [N, bytes per row].

    Raises:
        ZigpassError: a type that is not relaid, or rows that are not whole blocks.
    """
    if type_name not in READERS:
        raise ZigpassError(f"GGML type {type_name} is not supported, supported are {', '.join(READERS)}")
    kind = READERS[type_name]
    n, row_bytes = data.shape
    if row_bytes % kind.size:
        raise ZigpassError(
            f"a row of {row_bytes} bytes is not a whole number of {type_name} blocks of {kind.size} bytes"
        )
    return kind.read(np.ascontiguousarray(data).reshape(n, -1, kind.size))
