"""`export_program`: a packed model as a `torch.export` program with fused ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from zigpass import passes
from zigpass.passes import Context
from zigpass.runtime import ZigpassError

from .linear import find_linears


def export_program(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    skip: frozenset[str] = frozenset(),
) -> ExportedProgram:
    """Export a model with `torch.export` and fuse its MLPs and projections in the program.

    `torch.export.save` writes the program, weights and thresholds included; a process that imports nothing but
    `zigpass.runtime` loads and runs it.

    Args:
        model: with packed linears.
        args, kwargs: example inputs, as the model is called.
        dynamic_shapes: as `torch.export.export` takes them. Where the number of rows varies, one row runs sparse and
            more run dense, as in the model.
        skip: names of passes to leave out.

    Raises:
        ZigpassError: no packed linears, torch.export cannot trace the model, or no packed linear runs for these inputs.
    """
    if not any(True for _ in find_linears(model)):
        raise ZigpassError(
            f"{type(model).__name__} has no packed linears to export; call zigpass.prepare, zigpass.quantize_ or"
            " zigpass.load_gguf first"
        )
    try:
        with torch.no_grad():
            program = torch.export.export(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # tracing a model runs its code, which may raise anything
        raise ZigpassError(f"{type(model).__name__}: torch.export cannot trace it: {error}") from error
    context = passes.run(program, Context(any_rows=True, skip=skip))
    if not context.matches:
        reasons = "; ".join(near_miss.reason for near_miss in context.near_misses)
        raise ZigpassError(f"{type(model).__name__}: no packed linear runs for these inputs. {reasons}")
    return program
