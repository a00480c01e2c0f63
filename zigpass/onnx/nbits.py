"""com.microsoft's MatMulNBits: its inputs as a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from zigpass.runtime import GroupScales, Layout, QuantizedWeight


def restore_nbits(layout: Layout, parts: dict[str, Tensor]) -> QuantizedWeight:
    """The weight that the inputs of a MatMulNBits hold.

    Args:
        layout: of the weight: N, K, bits and group size.
        parts: codes uint8 [N, groups, group_size * bits / 8], scale of N * groups entries, and, if given, zero uint8
            of N rows of packed zeros. Without zeros, the middle of the codes' range is the zero.
    """
    n, groups = layout.n, layout.num_groups
    codes = _unpack(parts["codes"].reshape(n, -1), layout.bits)[:, : layout.k].contiguous()
    scale = parts["scale"].reshape(n, groups)
    if "zero" in parts:
        zero = _unpack(parts["zero"].reshape(n, -1), layout.bits)[:, :groups].contiguous()
    else:
        zero = torch.full((n, groups), 1 << (layout.bits - 1), dtype=torch.uint8)
    return QuantizedWeight(codes, layout.bits, GroupScales(scale, zero, "sub_int", layout.group_size))


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [N, bytes] -> uint8 [N, bytes * 8 / bits], the first value in the lowest bits."""
    mask = (1 << bits) - 1
    values = torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], -1)
    return values.reshape(packed.shape[0], -1)
