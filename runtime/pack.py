"""Moving codes and scales in and out of the zigzag layout, without changing a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .errors import ZigpassError
from .layout import BLOCK_ROWS, COLUMN_BLOCK, COLUMN_RECORD_WORDS, COLUMN_SUPERBLOCK, Layout
from .memory_errors import naming_out_of_memory
from .quantized import ColumnScales, GroupScales, QuantizedWeight

LARGEST_COLUMN_SCALE = 512
"""Largest d * scale6; the CUDA kernels scale inputs to below 2^6 and have 2^16 to stay under."""
PACK_ELSEWHERE = "free some, or pack it on the CPU and move the result"
BLOCKS_PER_SUPERBLOCK = COLUMN_SUPERBLOCK // COLUMN_BLOCK


@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """A weight in the zigzag layout.

    Attributes:
        layout: its geometry.
        tensors: what the ops take, in order: codes int32 [layout.num_code_words]; scale [layout.num_scales], float
            ("in") or int32 ("out"); zero [layout.num_scales] ("in" only); perm int32 [K] (permuted layouts only).
    """

    layout: Layout
    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        check_tensors(self.layout, self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def check_tensors(layout: Layout, tensors: Sequence[Tensor]) -> None:
    """Raise `ZigpassError` when tensors do not have the sizes that the layout asks for."""
    if len(tensors) != layout.num_tensors:
        raise ZigpassError(f"{layout.spec} needs {layout.num_tensors} tensors, got {len(tensors)}")
    sizes = (layout.num_code_words, layout.num_scales, layout.num_scales, layout.k)
    for name, tensor, size in zip(("codes", "scale", "zero", "perm"), tensors, sizes, strict=False):
        if tuple(tensor.shape) != (size,):
            raise ZigpassError(f"{name} of {layout.spec} has shape {tuple(tensor.shape)}, expected {(size,)}")


def pack(weight: QuantizedWeight, band: int | None = None) -> PackedWeight:
    """Lay a weight out in bands of `band` rows (None: one band, what the CPU wants).

    Raises:
        ZigpassError: column scales that the kernels cannot hold, or no memory for it on the weight's device.
    """
    layout = weight.layout(band)
    with naming_out_of_memory(f"packing {layout.spec} on {weight.codes.device}", PACK_ELSEWHERE):
        codes = pack_codes(weight.codes, layout)
        if isinstance(weight.scales, GroupScales):
            scale = pack_group_values(weight.scales.scale, layout)
            perm = () if weight.perm is None else (weight.perm.contiguous(),)
            return PackedWeight(layout, (codes, scale, pack_group_values(weight.scales.zero, layout), *perm))
        return PackedWeight(layout, (codes, pack_column_scales(weight.scales, layout)))


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """The exact inverse of `pack`."""
    return unpack_tensors(packed.layout, packed.tensors)


def unpack_tensors(layout: Layout, tensors: Sequence[Tensor]) -> QuantizedWeight:
    """As `unpack`, for the loose tensors that the ops take."""
    codes = unpack_codes(tensors[0], layout)
    scales: GroupScales | ColumnScales
    if layout.scale_axis == "in":
        scale, zero = (unpack_group_values(tensor, layout) for tensor in tensors[1:3])
        scales = GroupScales(scale, zero, layout.zero_kind, layout.group_size)
    else:
        scales = unpack_column_scales(tensors[1], layout)
    return QuantizedWeight(codes, layout.bits, scales, tensors[3] if layout.permuted else None)


def repack(packed: PackedWeight, band: int | None) -> PackedWeight:
    """The same weight in bands of another size; band belongs to the device, not to the checkpoint."""
    if packed.layout.with_band(band) == packed.layout:
        return packed
    return pack(unpack(packed), band)


def pack_codes(codes: Tensor, layout: Layout) -> Tensor:
    """uint8 [N, K] -> int32 [num_code_words]."""
    depth, fields = layout.words_per_block, 32 // layout.bits
    padded = pad(codes, (0, 0, 0, layout.padded_n - layout.n))
    blocks = padded.view(-1, fields, depth, layout.k)
    words = torch.zeros(blocks.shape[0], depth, layout.k, dtype=torch.int32, device=codes.device)
    for field in range(fields):
        words |= blocks[:, field].to(torch.int32) << (layout.bits * field)
    return _to_bands(words.transpose(1, 2), layout, BLOCK_ROWS)


def unpack_codes(packed: Tensor, layout: Layout) -> Tensor:
    """int32 [num_code_words] -> uint8 [N, K]."""
    depth, fields = layout.words_per_block, 32 // layout.bits
    words = _from_bands(packed, layout, layout.k, depth, BLOCK_ROWS)
    mask = (1 << layout.bits) - 1
    rows = torch.stack([((words >> (layout.bits * field)) & mask).to(torch.uint8) for field in range(fields)], 1)
    return rows.transpose(2, 3).reshape(layout.padded_n, layout.k)[: layout.n].contiguous()


def pack_group_values(values: Tensor, layout: Layout) -> Tensor:
    """[N, G] -> [num_groups * padded_n], ordered band, group, row."""
    padded = pad(values, (0, 0, 0, layout.padded_n - layout.n))
    return _to_bands(padded.view(-1, 1, layout.num_groups).transpose(1, 2), layout, 1)


def unpack_group_values(packed: Tensor, layout: Layout) -> Tensor:
    """[num_groups * padded_n] -> [N, G]."""
    values = _from_bands(packed, layout, layout.num_groups, 1, 1)
    return values.reshape(layout.padded_n, layout.num_groups)[: layout.n].contiguous()


def pack_column_scales(scales: ColumnScales, layout: Layout) -> Tensor:
    """`ColumnScales` -> int32 [num_scales], ordered band, column, superblock, 4 words a superblock.

    Word 0 holds d (low half) and dmin (high half) as fp16 bits. Words 1 and 2 hold the low four bits of the eight
    scale6 and min6, four bits a block; word 3 their high two bits: block i has scale6 >> 4 at bit 4*i and min6 >> 4
    at bit 4*i + 2.
    """
    _check_column_scales(scales)
    records = _column_records(scales, layout)
    bands = []
    for band in range(layout.num_bands):
        start, end = layout.band_superblocks(band)
        bands.append(records[start:end].transpose(0, 1).reshape(-1))
    return torch.cat(bands)


def unpack_column_scales(packed: Tensor, layout: Layout) -> ColumnScales:
    """int32 [num_scales] -> `ColumnScales`."""
    num_superblocks = -(-layout.n // COLUMN_SUPERBLOCK)
    records = packed.new_empty(-(-layout.padded_n // COLUMN_SUPERBLOCK), layout.k, COLUMN_RECORD_WORDS)
    offset = 0
    for band in range(layout.num_bands):
        start, end = layout.band_superblocks(band)
        size = (end - start) * layout.k * COLUMN_RECORD_WORDS
        piece = packed[offset : offset + size].view(layout.k, end - start, COLUMN_RECORD_WORDS)
        records[start:end] = piece.transpose(0, 1)
        offset += size
    halves = records[:num_superblocks].view(torch.float16)
    low_scale, low_min, high = (records[..., word] for word in (1, 2, 3))
    scale6, min6 = [], []
    for block in range(BLOCKS_PER_SUPERBLOCK):
        high_bits = high >> (4 * block)
        scale6.append(((low_scale >> (4 * block)) & 15) | ((high_bits & 3) << 4))
        min6.append(((low_min >> (4 * block)) & 15) | ((high_bits & 12) << 2))
    num_blocks = -(-layout.n // COLUMN_BLOCK)
    scale6_rows, min6_rows = (
        torch.stack(part, 1).reshape(-1, layout.k)[:num_blocks].to(torch.uint8) for part in (scale6, min6)
    )
    return ColumnScales(halves[..., 0].contiguous(), halves[..., 1].contiguous(), scale6_rows, min6_rows)


def _check_column_scales(scales: ColumnScales) -> None:
    superblock = torch.arange(scales.scale6.shape[0], device=scales.d.device) // BLOCKS_PER_SUPERBLOCK
    largest = float((scales.d.float().abs()[superblock] * scales.scale6.float()).max())
    if not largest <= LARGEST_COLUMN_SCALE:
        raise ZigpassError(
            f"a column scale is {largest:.4g}, the kernels take up to {LARGEST_COLUMN_SCALE}: an input times a scale is"
            ' fp16 there; divide the weight by a power of two, or use scale_axis="in"'
        )


def _column_records(scales: ColumnScales, layout: Layout) -> Tensor:
    """int32 [superblocks, K, 4]; rows past N have scale zero."""
    num_superblocks = -(-layout.padded_n // COLUMN_SUPERBLOCK)
    halves = torch.stack([scales.d, scales.dmin], -1).contiguous().view(torch.int32).squeeze(-1)
    records = torch.zeros(num_superblocks, layout.k, COLUMN_RECORD_WORDS, dtype=torch.int32, device=halves.device)
    records[: halves.shape[0], :, 0] = halves
    missing = num_superblocks * BLOCKS_PER_SUPERBLOCK - scales.scale6.shape[0]
    scale6, min6 = (
        pad(part.to(torch.int32), (0, 0, 0, missing)).view(num_superblocks, BLOCKS_PER_SUPERBLOCK, layout.k)
        for part in (scales.scale6, scales.min6)
    )
    for block in range(BLOCKS_PER_SUPERBLOCK):
        scale_part, min_part = scale6[:, block], min6[:, block]
        records[..., 1] |= (scale_part & 15) << (4 * block)
        records[..., 2] |= (min_part & 15) << (4 * block)
        records[..., 3] |= ((scale_part >> 4) | ((min_part >> 4) << 2)) << (4 * block)
    return records


def _to_bands(values: Tensor, layout: Layout, rows_per_item: int) -> Tensor:
    """[items along N, columns, depth] -> flat, ordered band, column, item, depth."""
    per_band = layout.band // rows_per_item
    return torch.cat([piece.transpose(0, 1).reshape(-1) for piece in values.split(per_band)])


def _from_bands(flat: Tensor, layout: Layout, columns: int, depth: int, rows_per_item: int) -> Tensor:
    """The inverse of `_to_bands`: flat -> [items along N, columns, depth]."""
    pieces, offset = [], 0
    for band in range(layout.num_bands):
        start, end = layout.band_rows(band)
        items = (end - start) // rows_per_item
        size = items * columns * depth
        pieces.append(flat[offset : offset + size].view(columns, items, depth).transpose(0, 1))
        offset += size
    return torch.cat(pieces)
