"""The argument structs of `gemv.cu`, field for field; the kernel asserts their size when it compiles."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

_pointer, _int = ctypes.c_void_p, ctypes.c_int32

MAX_WEIGHTS = 3
"""Weights of one launch: q, k and v."""


class Divider(ctypes.Structure):
    """struct Divider: division by a number that the host knows, for numerators below 2^31.

    With l = ceil(log2 d), floor(n / d) = (n * (floor(2^(31 + l) / d) + 1)) >> (31 + l) for every n < 2^31 (Granlund and
    Montgomery, Division by invariant integers using multiplication, theorem 4.2).
    """

    _fields_ = (("value", _int), ("multiplier", ctypes.c_uint32), ("shift", _int))

    @classmethod
    def of(cls, value: int) -> Divider:
        bits = (value - 1).bit_length()
        return cls(value, ((1 << 31 + bits) // value + 1) & 0xFFFFFFFF, bits - 1) if value > 1 else cls(value, 0, 0)


class Weight(ctypes.Structure):
    """struct Weight."""

    _fields_ = (
        ("codes", _pointer),
        ("scale", _pointer),
        ("zero", _pointer),
        ("bias", _pointer),
        ("perm", _pointer),
        ("out", _pointer),
        ("n", _int),
        ("padded_n", _int),
        ("band", _int),
        ("first_tile", _int),
        ("bias_format", _int),
        ("band_tiles", Divider),
    )


class Arguments(ctypes.Structure):
    """struct Arguments; the only parameter of the kernel, so that one pointer is all a launch passes.

    Every field has a C type: a bare Python float would travel as a double.
    """

    _fields_ = (
        ("weights", Weight * MAX_WEIGHTS),
        ("x", _pointer),
        ("threshold", _pointer),
        ("partials", _pointer),
        ("in_partials", _pointer),
        ("gate_bias", _pointer),
        ("up_bias", _pointer),
        ("gate_bias_format", _int),
        ("up_bias_format", _int),
        ("num_weights", _int),
        ("k", _int),
        ("rows", _int),
        ("per_channel", _int),
        ("in_up_tile", _int),
        ("in_blocks", _int),
        ("in_tiles", Divider),
        ("gate_band", Divider),
        ("up_band", Divider),
        ("words", Divider),
        ("tiles", Divider),
        ("blocks", Divider),
    )


def word_of(struct: Any, field: str) -> int:
    """Position of a pointer field, in words of 8 bytes from the struct's start."""
    return int(getattr(struct, field).offset) // ctypes.sizeof(_pointer)


def words_of(arguments: Arguments) -> ctypes.Array[ctypes.c_uint64]:
    """The same memory as words of 8 bytes: setting one takes 0.05 us, a field inside a nested struct 0.15."""
    return (ctypes.c_uint64 * (ctypes.sizeof(Arguments) // 8)).from_buffer(arguments)


class Parameters:
    """Pointers, then integers, for a kernel without an argument struct; kept alive beside the array of addresses."""

    def __init__(self, pointers: Sequence[int], numbers: Sequence[int]) -> None:
        self._values = [_pointer(value) for value in pointers] + [_int(value) for value in numbers]
        self._addresses = (_pointer * len(self._values))(*(ctypes.addressof(value) for value in self._values))

    @property
    def address(self) -> int:
        return ctypes.addressof(self._addresses)
