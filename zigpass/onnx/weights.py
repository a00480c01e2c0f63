"""Weights as ONNX tensors, and back.

Codes keep their numbers; scales, zeros and minimums keep their bits and their dtype, bfloat16 aside, which not every
runtime reads and which becomes float32.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from zigpass.runtime import ColumnScales, GroupScales, Layout, PackedWeight, QuantizedWeight, pack
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.layout import COLUMN_BLOCK, round_up
from zigpass.runtime.pack import (
    pack_column_scales,
    pack_group_values,
    unpack_codes,
    unpack_column_scales,
    unpack_group_values,
)

from .forms import WeightForm, ZeroForm
from .nibbles import blocks_to_nibbles, moves_by_bytes, nibbles_to_blocks, pack_nibbles, unpack_nibbles

_ZERO_FORMS: Final[dict[str, ZeroForm]] = {"sub_int": "SubInt", "sub_float": "SubFloat", "add_float": "AddFloat"}
_COLUMN_PARTS: Final = ("d", "dmin", "scale6", "min6")
LEAST_FUSED_GROUP: Final = 16
"""onnxruntime has an int4 kernel for groups of a power of two from here on; others are right but slow there."""


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """A weight as an ONNX file holds it.

    Column p belongs to entry p of an input that the weight's permutation, if it has one, was applied to.

    Attributes:
        form: which inputs it takes.
        layout: what the native op packs it into again: one band, no permutation.
        scales: everything but the codes, by the name of the input.
    """

    form: WeightForm
    layout: Layout
    scales: dict[str, Tensor]
    _packed: PackedWeight

    @staticmethod
    def of(packed: PackedWeight) -> StoredWeight:
        """The stored form of a packed weight; scales are unpacked, codes when they are asked for."""
        layout, tensors = packed.layout, packed.tensors
        scales: GroupScales | ColumnScales
        if layout.scale_axis == "in":
            scale, zero = (unpack_group_values(tensor, layout) for tensor in tensors[1:3])
            scales = _storable(GroupScales(scale, zero, layout.zero_kind, layout.group_size), layout)
            layout = dataclasses.replace(layout, group_size=scales.group_size, zero_kind=scales.zero_kind)
        else:
            scales = unpack_column_scales(tensors[1], layout)
        form = form_of(layout)
        stored = dataclasses.replace(layout, permuted=False).with_band(None)
        return StoredWeight(form, stored, _scale_parts(scales, form), packed)

    def read(self, part: str) -> Tensor:
        """An input as the file holds it; UINT4 as uint8 [ceil(size / 2)]."""
        if part in self.scales:
            return pack_nibbles(self.scales[part]) if is_nibbles(self.form, part) else self.scales[part]
        codes, layout = self._packed.tensors[0], self._packed.layout
        if part == "codes" and moves_by_bytes(layout, self.stored_rows):
            return blocks_to_nibbles(codes, layout, self.stored_rows)
        rows = unpack_codes(codes, layout).t()
        rows = pad(rows, (0, self.stored_rows - rows.shape[1]))
        return pack_nibbles(rows if part == "codes" else _half(rows, part))

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape of an input."""
        given = self.scales.get(part)
        return (self.layout.k, self.stored_rows) if given is None else tuple(given.shape)

    @property
    def stored_rows(self) -> int:
        """Columns of the code matrices in the file: N, or N in whole blocks of 32."""
        return _stored_rows(self.layout)

    @property
    def runs_fused(self) -> bool:
        """Whether stock onnxruntime has a fast kernel for it."""
        size = self.layout.group_size
        return self.form.zero != "Column" and size >= LEAST_FUSED_GROUP and size & (size - 1) == 0


def form_of(layout: Layout) -> WeightForm:
    """The form of a weight with this layout."""
    zero: ZeroForm = "Column" if layout.scale_axis == "out" else _ZERO_FORMS[layout.zero_kind]
    return WeightForm(8 if layout.bits == 8 else 4, zero)


def _storable(scales: GroupScales, layout: Layout) -> GroupScales:
    """The same scales with zeros that fit the file's types, and in groups that the function bodies can sum over."""
    # GPTQ may hold a zero of 16 under 4-bit codes. A product of a float16 scale and a small integer is exact.
    if scales.zero_kind == "sub_int" and int(scales.zero.max()) >= 1 << max(layout.bits, 4):
        minimum = -scales.scale.float() * scales.zero.float()
        scales = GroupScales(scales.scale, minimum, "add_float", scales.group_size)
    size = math.gcd(layout.k, scales.group_size)
    if scales.zero_kind == "sub_int" or size == scales.group_size:
        return scales
    # The sum over the entries of a group wants groups of one size: repeat the scales in smaller ones.
    group = torch.arange(0, layout.k, size, device=scales.scale.device) // scales.group_size
    return GroupScales(scales.scale[:, group], scales.zero[:, group], scales.zero_kind, size)


def _scale_parts(scales: GroupScales | ColumnScales, form: WeightForm) -> dict[str, Tensor]:
    if isinstance(scales, ColumnScales):
        return {name: getattr(scales, name).t().contiguous() for name in _COLUMN_PARTS}
    scale, zero = (_without_bfloat16(values).t().contiguous() for values in (scales.scale, scales.zero))
    if form.zero == "AddFloat":
        return {"scale": scale, "minimum": zero}
    if form.zero == "SubInt" and form.bits == 8:
        return {"scale": scale, "zero_high": _half(zero, "high"), "zero_low": _half(zero, "low")}
    return {"scale": scale, "zero": zero}


def _without_bfloat16(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.bfloat16 else values


def _half(values: Tensor, part: str) -> Tensor:
    return values >> 4 if part == "high" else values & 15


def is_nibbles(form: WeightForm, part: str) -> bool:
    """Whether an input is UINT4 in the file."""
    return not form.is_nbits and (part in form.code_parts or (form.zero == "SubInt" and part.startswith("zero")))


def _stored_rows(layout: Layout) -> int:
    return round_up(layout.n, COLUMN_BLOCK) if layout.scale_axis == "out" else layout.n


def pack_again(form: WeightForm, layout: Layout, parts: dict[str, Tensor]) -> PackedWeight:
    """The packed weight that the inputs of a node hold.

    Args:
        layout: of the node's attribute.
        parts: the inputs; UINT4 as uint8 [ceil(size / 2)].

    Raises:
        ZigpassError: the parts do not fit together.
    """
    rows = _stored_rows(layout)
    groups = layout.num_groups
    sizes = dict.fromkeys(form.code_parts, (layout.k * rows + 1) // 2)
    sizes |= {
        name: (groups * rows + 1) // 2 for name in form.parts if name.startswith("zero") and form.zero == "SubInt"
    }
    raise_collected(
        (
            f"{name} has {parts[name].numel()} bytes, {layout.spec} needs {size}"
            for name, size in sizes.items()
            if parts[name].numel() != size
        ),
        "the tensors of a node do not fit its layout:",
    )
    if form.zero == "Column":
        scales: GroupScales | ColumnScales = ColumnScales(**{name: parts[name].t() for name in _COLUMN_PARTS})
    else:
        if form.zero == "SubInt":
            zero = _joined(
                {name: unpack_nibbles(part, (groups, rows)) for name, part in parts.items() if name.startswith("zero")},
                "zero",
            )
        else:
            zero = parts["minimum" if form.zero == "AddFloat" else "zero"]
        scales = GroupScales(parts["scale"].t(), zero.t(), layout.zero_kind, layout.group_size)
    scales.check(layout.n, layout.k)
    if not moves_by_bytes(layout, rows):
        shape = (layout.k, rows)
        codes = _joined({name: unpack_nibbles(parts[name], shape) for name in form.code_parts}, "codes")
        return pack(QuantizedWeight(codes.t()[: layout.n].contiguous(), layout.bits, scales))
    words = nibbles_to_blocks(parts["codes"], layout, rows)
    if isinstance(scales, ColumnScales):
        return PackedWeight(layout, (words, pack_column_scales(scales, layout)))
    values = (pack_group_values(each, layout) for each in (scales.scale, scales.zero))
    return PackedWeight(layout, (words, *values))


def _joined(parts: dict[str, Tensor], name: str) -> Tensor:
    """One tensor of 8-bit values from their halves, or the tensor itself where there are none."""
    prefix = "" if name == "codes" else f"{name}_"
    if f"{prefix}high" not in parts:
        return parts[name]
    return (parts[f"{prefix}high"] << 4) | parts[f"{prefix}low"]
