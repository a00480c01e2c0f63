"""A gate and an up projection stored as one linear (`gate_up_proj` of Phi-3, GLM): cut into its two halves.

The MLP op wants gate and up as two weights. Rows of a weight are independent, so cutting between them moves codes
and scales and changes no number, and the module below gives what the one linear gave.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight

LEAVES: Final = frozenset({"gate_up_proj"})
"""Names under which models keep gate and up in one linear, gate first."""
HALVES: Final = ("gate", "up")


class GateUp(nn.Module):
    """y = [gate(x), up(x)]: two linears in the place of one."""

    def __init__(self, gate: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.gate(x), self.up(x)], -1)


def holds_gate_and_up(linear_name: str, n: int) -> bool:
    """Whether the linear of this name and with N rows is a gate and an up of N / 2 rows each."""
    return linear_name.rpartition(".")[2] in LEAVES and n % 2 == 0


def halves_of(weight: QuantizedWeight) -> tuple[QuantizedWeight, QuantizedWeight] | None:
    """The upper and the lower rows of a weight; None where rows of both share a scale (scale_axis "out")."""
    if not isinstance(weight.scales, GroupScales):
        return None
    middle = weight.codes.shape[0] // 2
    first, second = (_rows(weight, weight.scales, part) for part in (slice(0, middle), slice(middle, None)))
    return first, second


def _rows(weight: QuantizedWeight, scales: GroupScales, rows: slice) -> QuantizedWeight:
    part = GroupScales(scales.scale[rows], scales.zero[rows], scales.zero_kind, scales.group_size)
    return QuantizedWeight(weight.codes[rows].contiguous(), weight.bits, part, weight.perm)


def open_places(model: nn.Module, linear_names: Iterable[str]) -> None:
    """Make room in an empty model for halves that were saved: `gate_up_proj.gate` needs a `GateUp` to go into."""
    names = set(linear_names)
    for name in sorted({name.rpartition(".")[0] for name in names}):
        owner, _, leaf = name.rpartition(".")
        if leaf not in LEAVES or not {f"{name}.{half}" for half in HALVES} <= names:
            continue
        linear = model.get_submodule(name)
        if isinstance(linear, nn.Linear):
            halves = (nn.Linear(linear.in_features, linear.out_features // 2, device="meta") for _ in HALVES)
            setattr(model.get_submodule(owner), leaf, GateUp(*halves))
