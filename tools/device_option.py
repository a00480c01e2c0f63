"""The command-line option for where a model runs."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from torch import nn

from zigpass.runtime import ZigpassError

Device = Annotated[str, typer.Option(help="cpu or cuda; default: cuda where there is one.")]


def find_device(name: str) -> torch.device:
    """The device of this name; for an empty one the GPU where there is one, else the CPU.

    Raises:
        ZigpassError: neither "cpu" nor "cuda" (with or without a number), or no such GPU.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ZigpassError(f"--device {name}: neither cpu nor cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ZigpassError(f"--device {name}: neither cpu nor cuda")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ZigpassError(f"--device {name}: torch {torch.__version__} sees {count} GPUs; --device cpu works anywhere")
    return device


def move_to(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, on this device.

    Raises:
        ZigpassError: it does not fit there.
    """
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise ZigpassError(f"the model does not fit on {device}; --device cpu runs it in main memory") from error
