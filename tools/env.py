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
    "onnxruntime", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "triton",
)  # fmt: skip
VARIABLES = ("CUDA", "NUMBA", "OMP", "MKL", "TORCH", "ZIGPASS")
"""Beginnings of the names of environment variables that change what runs."""


def environment() -> dict[str, Any]:
    """Versions, processor, devices and cache folder."""
    from zigpass.runtime.cache_root import cache_root
    from zigpass.runtime.cpu import huge_pages

    return {
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "cpu_kernels": _cpu_kernels(),
        "cuda": torch.version.cuda,
        "cuda_kernels": _cuda_kernels(),
        "cuda_devices": [_describe_gpu(index) for index in range(torch.cuda.device_count())],
        "huge_pages": huge_pages.describe(),
        "cache_folder": str(cache_root()),
    }


def env(json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print what a bug report should say about this machine."""
    report = {**environment(), "variables": variables()}
    if json_output:
        typer.echo(json.dumps(report, indent=2))
        return
    packages = report.pop("packages")
    for name, value in {**packages, **report}.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{key}={setting}" for key, setting in value.items())
        typer.echo(f"{name:17} {'-' if shown in (None, '') else shown}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def variables() -> dict[str, str]:
    """Environment variables that change what runs; they may hold paths, so result files leave them out."""
    return {name: value for name, value in sorted(os.environ.items()) if name.split("_")[0] in VARIABLES}


def _memory_gb() -> float | None:
    """Memory of the machine; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _cpu_kernels() -> str:
    """Which of the CPU kernels run here."""
    from zigpass.runtime.cpu import available_variants

    return available_variants()[0]


def _cuda_kernels() -> dict[str, str]:
    """What compiles and launches the CUDA kernels, and where cubins and launch tables are."""
    from zigpass.runtime import ZigpassError
    from zigpass.runtime.cuda.compiler import cache_folder, nvrtc_version
    from zigpass.runtime.cuda.tables import shipped_tables, user_tables

    try:
        nvrtc = ".".join(map(str, nvrtc_version()))
    except ZigpassError as error:
        nvrtc = str(error)
    return {
        "driver": _cuda_driver(),
        "nvrtc": nvrtc,
        "cubins": str(cache_folder()),
        "tables": " ".join(f"sm_{arch}" for arch in shipped_tables()),
        "own tables": " ".join(map(str, user_tables())),
    }


def _cuda_driver() -> str:
    """The newest CUDA version that the driver runs."""
    try:
        from cuda.bindings import driver

        status, version = driver.cuDriverGetVersion()
    except Exception as error:  # without a driver the bindings raise what their version likes
        return f"none ({type(error).__name__})"
    return f"{version // 1000}.{version % 1000 // 10}" if int(status) == 0 and version else "none"


def _describe_gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} (sm_{properties.major}{properties.minor}, {properties.total_memory / 1e9:.0f} GB)"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    from zigpass.cli import run_script

    run_script(env)
