"""CPU implementations of the zigpass ops, compiled by Numba at their first use.

Kernels are picked by what the CPU has (variants.py) and use torch's threads (parallel.py).
"""

from .activation_dtype import get_activation_dtype, set_activation_dtype
from .gated_mlp import gated_mlp
from .linear import linear, qkv
from .variants import available_variants, set_variant

__all__ = [
    "available_variants",
    "gated_mlp",
    "get_activation_dtype",
    "linear",
    "qkv",
    "set_activation_dtype",
    "set_variant",
]
