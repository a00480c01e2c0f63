"""What can be said against exporting a model before anything is traced."""

from __future__ import annotations

import torch
from torch import nn

from zigpass.linear import find_linears
from zigpass.runtime import ZigpassError
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.reference import COUNT_DTYPE
from zigpass.sites import find_sites


def check_exportable(model: nn.Module) -> None:
    """
    Raises:
        ZigpassError: no packed linears, bfloat16 weights, or sites that ONNX cannot express; every problem at once.
    """
    if not any(True for _ in find_linears(model)):
        raise ZigpassError(
            f"{type(model).__name__} has no packed linears to export; call zigpass.prepare, zigpass.quantize_ or"
            " zigpass.load_gguf first"
        )
    failures = []
    if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        failures.append(
            "it computes in bfloat16, which onnxruntime does not on CPUs; call model.float() (packed weights stay as"
            " they are)"
        )
    sites = find_sites(model)
    masked = [name for name, site in sites.items() if site.mask_rows]
    if masked:
        failures.append(f"mask_rows is set on {len(masked)} sites ({masked[0]}, ...); it is for measuring")
    counted = [name for name, site in sites.items() if site.threshold.dtype == COUNT_DTYPE]
    if counted:
        failures.append(
            f"{len(counted)} sites ({counted[0]}, ...) read a fixed count of entries, which the ONNX ops do not;"
            ' calibrate with selection="threshold"'
        )
    raise_collected(failures, f"{type(model).__name__} cannot be exported:")
