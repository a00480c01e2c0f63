"""Which weights share a launch, and which launches are dense whatever the threshold."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..layout import Layout
from .arguments import MAX_WEIGHTS
from .device import get_device
from .plan import weight_kind
from .specialization import WeightKind
from .tables import sparsity_pays


def launch_runs(kinds: Sequence[WeightKind | None]) -> list[tuple[int, int]]:
    """Cut weights over one x into runs that one launch can take: the same kind, at most `MAX_WEIGHTS`."""
    runs: list[tuple[int, int]] = []
    for index, kind in enumerate(kinds):
        if runs and kinds[runs[-1][0]] == kind and index - runs[-1][0] < MAX_WEIGHTS:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def never_sparse(device_index: int, layouts: Sequence[Layout], weights: Sequence[Sequence[Tensor]]) -> list[bool]:
    """For each of several weights over one row: whether its launch reads all of it, because the table says that a
    sparse launch of that shape is never faster."""
    arch = get_device(device_index).arch
    kinds = [weight_kind(layout, tensors) for layout, tensors in zip(layouts, weights, strict=True)]
    result: list[bool] = []
    for start, end in launch_runs(kinds):
        kind, padded_n = kinds[start], sum(layout.padded_n for layout in layouts[start:end])
        dense = kind is not None and not sparsity_pays(arch, kind, 1, padded_n, layouts[start].k)
        result += [dense] * (end - start)
    return result
