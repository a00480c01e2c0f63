"""Quantizers: from float weights to codes and scales.

Two scale forms: `scale_axis` "in" is the usual asymmetric group quantization, s * (q - z) with an integer z; "out" is
the Q4_K superblock turned by 90 degrees (paper, "zigzag layout"), d * scale6 * q - dmin * min6.
"""

from .quantize_weight import quantize_weight

__all__ = ["quantize_weight"]
