"""Recovered codes and scales against the module's own dequantization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError

from .recognizer import Recognizer

ROWS_AT_ONCE = 128
"""Rows compared together: bounds the float32 scratch, some 24 bytes a weight, to a small part of a layer."""
UNITS_AT_ONCE = 512
"""Unit vectors given to a module together; it dequantizes its weight each time."""


def check_recovered(recognizer: Recognizer, weight: QuantizedWeight, own: Tensor) -> None:
    """Raise `ZigpassError` with the numbers unless both are the same weight in the dtype of `own`.

    The same means bit for bit, unless the recognizer states a tolerance.
    """
    if weight.codes.shape != own.shape:
        raise ZigpassError(
            f"{recognizer.name}: the module dequantizes to {tuple(own.shape)},"
            f" its codes are {tuple(weight.codes.shape)}"
        )
    differing, first = 0, ""
    for start, part in _row_blocks(weight):
        theirs = own[start : start + ROWS_AT_ONCE]
        ours = recognizer.rounded(part, own.dtype)
        if torch.equal(ours, theirs):
            continue
        wrong = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
        tolerance = recognizer.tolerance(part)
        if tolerance is not None:
            wrong &= ~((ours - theirs).abs() <= tolerance)  # also wrong where one of them is NaN
        count = int(wrong.sum())
        if count and not differing:
            row, column = (int(index) for index in wrong.nonzero()[0])
            first = (
                f"row {start + row}, column {column}: {float(theirs[row, column]):.9g} there,"
                f" {float(ours[row, column]):.9g} recovered"
            )
        differing += count
    if differing:
        raise ZigpassError(
            f"{recognizer.name}: {differing} of {own.numel()} recovered weights differ from the module's own"
            f" dequantization, first {first}; this version of the library may store its weights in another way"
        )


def is_same(recognizer: Recognizer, weight: QuantizedWeight, own: Tensor) -> bool:
    """Whether `check_recovered` accepts."""
    try:
        check_recovered(recognizer, weight, own)
    except ZigpassError:
        return False
    return True


def _row_blocks(weight: QuantizedWeight) -> Iterator[tuple[int, QuantizedWeight]]:
    scales = weight.scales
    assert isinstance(scales, GroupScales)  # every representation has scales along the inputs
    for start in range(0, weight.codes.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = GroupScales(scales.scale[rows], scales.zero[rows], scales.zero_kind, scales.group_size)
        yield start, QuantizedWeight(weight.codes[rows], weight.bits, part, weight.perm)


def forward_of_identity(module: torch.nn.Module, k: int, dtype: torch.dtype) -> Tensor:
    """The weight [N, K] that a module multiplies with: its output for the unit vectors, bias set aside.

    Exact, because every sum has one term that is not zero.
    """
    source: Any = module
    bias = getattr(source, "bias", None)
    columns = []
    try:
        if bias is not None:
            source.bias = None
        with torch.no_grad():
            for start in range(0, k, UNITS_AT_ONCE):
                count = min(UNITS_AT_ONCE, k - start)
                unit = torch.zeros(count, k, dtype=dtype, device=_device_of(module))
                unit[torch.arange(count), torch.arange(start, start + count)] = 1
                columns.append(module(unit))
    finally:
        if bias is not None:
            source.bias = bias
    return torch.cat(columns).T.contiguous()


def _device_of(module: torch.nn.Module) -> torch.device:
    return next(iter((*module.parameters(recurse=False), *module.buffers(recurse=False)))).device
