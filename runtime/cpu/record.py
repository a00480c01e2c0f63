"""A weight as compiled code sees it: a row of integers.

A record holds the addresses of the packed tensors and of the result, and the numbers of the layout. Kernels read its
fields by the names below; `WeightPlan` makes records and checks that memory is what the layout says before any address
is used.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ..errors import ZigpassError
from ..layout import Layout
from ..quantized import FLOAT_DTYPES
from .floats import DTYPE_CODES, FLOAT32

CODES: Final = 0
SCALE: Final = 1
ZERO: Final = 2
BIAS: Final = 3
BIAS_DTYPE: Final = 4
OUT: Final = 5
OUT_DTYPE: Final = 6
N: Final = 7
K: Final = 8
BAND: Final = 9
BITS: Final = 10
GROUP_SIZE: Final = 11
ZERO_KIND: Final = 12
SCALE_DTYPE: Final = 13
ZERO_DTYPE: Final = 14
PERM: Final = 15
RECORD_FIELDS: Final = 16

SUBTRACT_ZERO: Final = 0
ADD_ZERO: Final = 1
COLUMN_SCALES: Final = 2
_ZERO_KIND_CODES: Final = {
    "sub_int": SUBTRACT_ZERO,
    "sub_float": SUBTRACT_ZERO,
    "add_float": ADD_ZERO,
    "column": COLUMN_SCALES,
}


class WeightPlan:
    """What is the same for every weight of one layout and one set of dtypes; made once, used by every call."""

    def __init__(self, layout: Layout, dtypes: tuple[torch.dtype, ...]) -> None:
        if len(dtypes) != layout.num_tensors:
            raise ZigpassError(f"{layout.spec} needs {layout.num_tensors} tensors, got {len(dtypes)}")
        self.layout = layout
        self.n, self.k = layout.n, layout.k
        self.num_codes = layout.padded_n * layout.k
        names = ("codes", "scale", *(("zero",) if layout.scale_axis == "in" else ()), *(("perm",) * layout.permuted))
        for name, dtype, allowed in zip(names, dtypes, _allowed_dtypes(layout), strict=False):
            if dtype not in allowed:
                raise ZigpassError(f"{name} of {layout.spec} has dtype {dtype}, expected one of {allowed}")
        sizes = {
            "codes": layout.num_code_words,
            "scale": layout.num_scales,
            "zero": layout.num_scales,
            "perm": layout.k,
        }
        self._sizes = [(name, sizes[name]) for name in names]
        self._has_zero = layout.scale_axis == "in"
        self._layout_fields = (
            layout.n,
            layout.k,
            layout.band,
            layout.bits,
            layout.group_size,
            _ZERO_KIND_CODES[layout.zero_kind],
            DTYPE_CODES.get(dtypes[1], FLOAT32),
            DTYPE_CODES[dtypes[2]] if self._has_zero else FLOAT32,
        )

    def fits(self, weight: Sequence[Tensor]) -> bool:
        """Whether the packed tensors have the sizes of the layout and lie in one piece."""
        return all(
            tensor.numel() == size and tensor.is_contiguous()
            for tensor, (_, size) in zip(weight, self._sizes, strict=True)
        )

    def record(self, weight: Sequence[Tensor], bias: Tensor | None, out: int, out_dtype: int) -> tuple[int, ...]:
        """The record of packed tensors that `fits` accepted; the caller keeps them and the bias alive."""
        return (
            weight[0].data_ptr(),
            weight[1].data_ptr(),
            weight[2].data_ptr() if self._has_zero else 0,
            0 if bias is None else bias.data_ptr(),
            FLOAT32 if bias is None else DTYPE_CODES[bias.dtype],
            out,
            out_dtype,
            *self._layout_fields,
            weight[-1].data_ptr() if self.layout.permuted else 0,
        )

    def explain_misfit(self, weight: Sequence[Tensor]) -> ZigpassError:
        """The error for packed tensors that `fits` refused."""
        problems = [
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, expected {size} contiguous elements"
            for (name, size), tensor in zip(self._sizes, weight, strict=True)
            if tensor.numel() != size or not tensor.is_contiguous()
        ]
        return ZigpassError(f"packed tensors do not fit {self.layout.spec}: {'; '.join(problems)}")


def _allowed_dtypes(layout: Layout) -> tuple[tuple[torch.dtype, ...], ...]:
    if layout.scale_axis == "out":
        return (torch.int32,), (torch.int32,)
    zero = (torch.uint8,) if layout.zero_kind == "sub_int" else FLOAT_DTYPES
    return (torch.int32,), FLOAT_DTYPES, zero, (torch.int32,)


@functools.lru_cache(maxsize=4096)
def weight_plan(spec: str, *dtypes: torch.dtype) -> WeightPlan:
    """The plan for a layout spec and the dtypes of its packed tensors."""
    return WeightPlan(Layout.parse(spec), dtypes)


def pack_records(records: Sequence[tuple[int, ...]]) -> array[int]:
    """Records as one block of int64. An `array.array` and its address take 1.1 us, a NumPy array 1.5."""
    block = array("q")
    for record in records:
        block.extend(record)
    return block
