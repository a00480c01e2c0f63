"""Linears whose launch on their GPU is dense although they have a threshold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zigpass.passes import Match

from .linear import ZigzagLinear

NEVER_SPARSE = "reads all of it: the launch table says that skipping never pays for its shape on this GPU"


def dense_launches(linears: Mapping[str, ZigzagLinear], matches: Iterable[Match]) -> set[str]:
    """Names of linears on a GPU that the launch table makes dense in the ops they are part of.

    Args:
        linears: by the names that the matches use.
        matches: ops of one row. Their linears share a launch, but for the down projection of an MLP, which has its own.
    """
    names: set[str] = set()
    for match in matches:
        is_mlp = match.kind in ("gated_mlp", "mlp")
        for group in (match.modules[:-1], match.modules[-1:]) if is_mlp else (match.modules,):
            found = [linears[name] for name in group if name in linears]
            index = cuda_index(found[0]) if found and len(found) == len(group) else None
            if index is not None:
                names |= _dense_of(index, dict(zip(group, found, strict=True)))
    return names


def cuda_index(linear: ZigzagLinear) -> int | None:
    """Index of the GPU that holds a linear; None on other devices."""
    return linear.codes.device.index if linear.codes.is_cuda else None


def _dense_of(index: int, linears: Mapping[str, ZigzagLinear]) -> set[str]:
    from zigpass.runtime.cuda.launches import never_sparse  # only here does a report need the CUDA side

    layouts, weights = zip(*((linear.layout, linear.weight_tensors) for linear in linears.values()), strict=True)
    return {name for name, dense in zip(linears, never_sparse(index, layouts, weights), strict=True) if dense}
