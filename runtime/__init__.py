"""Ops, layout, kernels and launch. Knows no graphs and no models.

Importing this package defines the `torch.ops.zigpass` operators.
"""

from . import ops
from .errors import ZigpassError
from .layout import Layout
from .pack import PackedWeight, pack, repack, unpack
from .quantized import ColumnScales, GroupScales, QuantizedWeight

__all__ = [
    "ColumnScales",
    "GroupScales",
    "Layout",
    "PackedWeight",
    "QuantizedWeight",
    "ZigpassError",
    "ops",
    "pack",
    "repack",
    "unpack",
]
