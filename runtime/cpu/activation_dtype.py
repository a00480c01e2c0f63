"""How precisely inputs enter the integer kernels."""

from __future__ import annotations

from typing import Final, Literal

from ..errors import ZigpassError
from .fixed_point import FLOAT32_DIGITS, INT8_DIGITS

ActivationDtype = Literal["float32", "int8"]
_DIGITS: Final[dict[str, int]] = {"float32": FLOAT32_DIGITS, "int8": INT8_DIGITS}
_current: ActivationDtype = "float32"


def set_activation_dtype(dtype: ActivationDtype) -> None:
    """Choose the precision of inputs on CPUs that have integer kernels; others always use float32.

    Args:
        dtype: "float32" (default): 24-bit integers per group, as precise as float32 arithmetic. "int8": 8-bit integers
            per group, an error of up to 0.4 % of the group's largest input.

    Raises:
        ZigpassError: another name.
    """
    global _current
    if dtype not in _DIGITS:
        raise ZigpassError(f"activation dtype must be one of {tuple(_DIGITS)}, got {dtype!r}")
    _current = dtype


def get_activation_dtype() -> ActivationDtype:
    return _current


def current_digits() -> int:
    """Digits of an input in the integer kernels, see fixed_point.py."""
    return _DIGITS[_current]
