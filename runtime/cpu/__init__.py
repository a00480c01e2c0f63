"""CPU implementations of the zigpass ops, compiled by Numba at their first use."""

from .gated_mlp import gated_mlp
from .linear import linear, qkv

__all__ = ["gated_mlp", "linear", "qkv"]
