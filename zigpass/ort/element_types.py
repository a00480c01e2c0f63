"""Memory of onnxruntime as torch tensors."""

from __future__ import annotations

import ctypes
import math
from typing import Final

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError

UINT4: Final = 21
_DTYPES: Final[dict[int, torch.dtype]] = {
    1: torch.float32,
    2: torch.uint8,
    6: torch.int32,
    7: torch.int64,
    10: torch.float16,
}
"""ONNX's numbers of element types."""


def read_tensor(address: int, element_type: int, shape: tuple[int, ...]) -> Tensor:
    """A tensor without a copy, the memory must outlive it; UINT4 as uint8 [ceil(size / 2)].

    Raises:
        ZigpassError: an element type that no weight has.
    """
    count = math.prod(shape)
    if element_type == UINT4:
        return _view(address, torch.uint8, (count + 1) // 2)
    dtype = _DTYPES.get(element_type)
    if dtype is None:
        raise ZigpassError(f"a weight has ONNX element type {element_type}, which zigpass does not write")
    return _view(address, dtype, count).view(shape)


def float_view(address: int, *shape: int) -> Tensor:
    """float32 memory as a tensor, without a copy; the memory must outlive it."""
    return _view(address, torch.float32, math.prod(shape)).view(shape)


def _view(address: int, dtype: torch.dtype, count: int) -> Tensor:
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype, count=count)
