"""The argument structs of `gemv.cu`, field for field; the kernel asserts their size when it compiles."""

from __future__ import annotations

import ctypes

_pointer, _int = ctypes.c_void_p, ctypes.c_int32

MAX_WEIGHTS = 3
"""Weights of one launch: q, k and v."""


class Weight(ctypes.Structure):
    """struct Weight."""

    _fields_ = (
        ("codes", _pointer),
        ("scale", _pointer),
        ("zero", _pointer),
        ("bias", _pointer),
        ("out", _pointer),
        ("n", _int),
        ("padded_n", _int),
        ("band", _int),
        ("first_tile", _int),
        ("bias_format", _int),
        ("reserved", _int),
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
        ("num_tiles", _int),
        ("k", _int),
        ("rows", _int),
        ("per_channel", _int),
        ("in_tiles", _int),
        ("in_up_tile", _int),
        ("in_blocks", _int),
        ("in_words", _int),
        ("in_tile", _int),
        ("gate_band", _int),
        ("up_band", _int),
        ("blocks", _int),
        ("reserved", _int),
    )


class DequantizeArguments:
    """The parameters of `dequantize.cu`, kept alive beside the array of their addresses."""

    def __init__(self, pointers: tuple[int, int, int, int], numbers: tuple[int, int, int, int, int]) -> None:
        self._values = [_pointer(value) for value in pointers] + [_int(value) for value in numbers]
        self._addresses = (_pointer * len(self._values))(*(ctypes.addressof(value) for value in self._values))

    @property
    def address(self) -> int:
        return ctypes.addressof(self._addresses)
