"""What a bug report should say about the machine: `zigpass env` or `python tools/env.py`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Annotated, Any

import torch
import typer

PACKAGES = (
    "zigpass", "torch", "numba", "llvmlite", "numpy", "transformers", "torchao", "gguf", "safetensors", "onnx",
    "onnxruntime", "cuda-core", "cuda-bindings",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, processor, devices and cache folder."""
    from zigpass.runtime.cache_root import cache_root

    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cache_folder": str(cache_root()),
    }


def env(json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print what a bug report should say about this machine."""
    report = environment()
    if json_output:
        typer.echo(json.dumps(report, indent=2))
        return
    packages = report.pop("packages")
    for name, value in {**packages, **report}.items():
        typer.echo(f"{name:16} {value}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    from zigpass.cli import run_script

    run_script(env)
