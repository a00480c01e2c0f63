"""Operands that the kernels would read wrongly are refused before a launch, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ZigpassError
from ..layout import Layout
from ..quantized import FLOAT_DTYPES
from ..reference import COUNT_DTYPE
from .formats import FORMATS, NONE

ALIGNMENT = 16
"""Bytes: every lane reads 16 at a time."""
THRESHOLD_DTYPES = (torch.float32, COUNT_DTYPE)


def check_operands(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    thresholds: Sequence[Tensor | None],
    layouts: Sequence[Layout],
) -> None:
    """Raise `ZigpassError` for operands that a kernel would read wrongly: device, dtype, alignment, shape."""
    index = x.get_device()
    if x.data_ptr() % x.element_size():
        raise ZigpassError(
            f"x starts at {x.data_ptr():#x}, which is not a multiple of the {x.element_size()} bytes of {x.dtype};"
            " copy it into a tensor of its own"
        )
    if (
        all(_weight_fits(tensors, layout, index) for tensors, layout in zip(weights, layouts, strict=True))
        and all(
            bias is None
            or (bias.get_device() == index and tuple(bias.shape) == (layout.n,) and bias.dtype in FLOAT_DTYPES)
            for bias, layout in zip(biases, layouts, strict=True)
        )
        and all(t is None or (t.get_device() == index and t.dtype in THRESHOLD_DTYPES) for t in thresholds)
    ):
        return
    raise_misfit(x.device, weights, biases, thresholds, layouts)


def _weight_fits(tensors: Sequence[Tensor], layout: Layout, index: int) -> bool:
    """The common case in a microsecond; `raise_misfit` looks closely (five times as long) and finds the words."""
    codes, scale = tensors[0], tensors[1]
    if codes.dtype != torch.int32 or codes.get_device() != index or scale.get_device() != index:
        return False
    if not codes.data_ptr() or not scale.data_ptr():
        return False
    addresses = codes.data_ptr() | scale.data_ptr()
    contiguous = codes.is_contiguous() and scale.is_contiguous()
    if layout.scale_axis == "out":
        return contiguous and scale.dtype == torch.int32 and not addresses % ALIGNMENT
    zero = tensors[2]
    if layout.permuted and (tensors[3].get_device() != index or not tensors[3].is_contiguous()):
        return False
    return (
        contiguous
        and zero.is_contiguous()
        and zero.data_ptr() != 0
        and not (addresses | zero.data_ptr()) % ALIGNMENT
        and zero.get_device() == index
        and zero.numel() == scale.numel()
        and scale.dtype in FLOAT_DTYPES
        and (zero.dtype == torch.uint8 if layout.zero_kind == "sub_int" else zero.dtype in FLOAT_DTYPES)
    )


def raise_misfit(
    device: torch.device,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    thresholds: Sequence[Tensor | None],
    layouts: Sequence[Layout],
) -> None:
    """Raise for the first operand that does not fit; do nothing when all do."""
    for tensors, layout in zip(weights, layouts, strict=True):
        for name, tensor in zip(("codes", "scale", "zero", "perm"), tensors, strict=False):
            if tensor.device != device:
                raise ZigpassError(f"{name} of {layout.spec} is on {tensor.device}, x on {device}")
            if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
                raise ZigpassError(f"{name} of {layout.spec} must be contiguous and aligned to {ALIGNMENT} bytes")
            if not tensor.data_ptr():
                raise ZigpassError(f"{name} of {layout.spec} has no memory, its storage was freed: load it again")
        if tensors[0].dtype != torch.int32:
            raise ZigpassError(f"codes of {layout.spec} are {tensors[0].dtype}, expected torch.int32")
        if layout.scale_axis == "out":
            if tensors[1].dtype != torch.int32:
                raise ZigpassError(f"scale of {layout.spec} is {tensors[1].dtype}, expected torch.int32")
        else:
            zero_is_integer = tensors[2].dtype == torch.uint8
            if FORMATS.get(tensors[1].dtype, NONE) > 2 or tensors[2].dtype not in FORMATS:
                raise ZigpassError(f"{layout.spec} has scale {tensors[1].dtype} and zero {tensors[2].dtype}")
            if zero_is_integer != (layout.zero_kind == "sub_int"):
                raise ZigpassError(f"zero of {layout.spec} is {tensors[2].dtype}")
            if tensors[2].shape != tensors[1].shape:
                raise ZigpassError(f"scale and zero of {layout.spec} have different sizes")
    for bias, layout in zip(biases, layouts, strict=True):
        if bias is not None and (
            bias.device != device or tuple(bias.shape) != (layout.n,) or FORMATS.get(bias.dtype, NONE) > 2
        ):
            raise ZigpassError(
                f"bias of {layout.spec} is {bias.dtype} {tuple(bias.shape)} on {bias.device}, expected ({layout.n},)"
                f" floats on {device}"
            )
    for threshold in thresholds:
        if threshold is not None and (threshold.device != device or threshold.dtype not in THRESHOLD_DTYPES):
            raise ZigpassError(
                f"threshold is {threshold.dtype} on {threshold.device}, expected float32, or int32 for a count, on"
                f" {device}"
            )
