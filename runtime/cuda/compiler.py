"""Kernel sources to cubin with NVRTC, kept in a cache on disk.

A cubin, not PTX: PTX from an NVRTC newer than the driver fails to load. The cache of `cuda.core` writes each file
atomically and keys it on source, options and compiler version, so several processes may share it.
"""

from __future__ import annotations

import functools
import io
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache_root import cache_root
from ..errors import ZigpassError

if TYPE_CHECKING:
    from cuda.core import ObjectCode

KERNEL_FOLDER = Path(__file__).resolve().parent.parent / "kernels"
OLDEST_ARCH = 75
"""sm_75 is the first with the fp16 tensor-core shape that the kernels use."""
INSTALL_HINT = "pip install 'zigpass[cuda]' brings it"

_log = logging.getLogger(__name__)
_INCLUDE = re.compile(r'^#include "(?P<file>\w+\.cuh)"$', re.MULTILINE)


@functools.cache
def kernel_source(file: str) -> str:
    """A kernel's text with its own headers pasted in, so that it is one self-contained string."""
    seen: set[str] = set()

    def paste(match: re.Match[str]) -> str:
        name = match["file"]
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(paste, (KERNEL_FOLDER / name).read_text().replace("#pragma once\n", ""))

    return _INCLUDE.sub(paste, (KERNEL_FOLDER / file).read_text())


def compile_kernel(file: str, macros: Mapping[str, int], arch: int, *, use_cache: bool = True) -> ObjectCode:
    """Compile one specialization for sm_`arch`.

    Args:
        file: name of a `.cu` file in `runtime/kernels`.
        macros: what its head comment asks for.
        arch: compute capability as one number, 90 for 9.0.

    Raises:
        ZigpassError: no NVRTC, an architecture below sm_75 or unknown to NVRTC, or the compiler's own message.
    """
    code, _ = _compile(file, macros, arch, program_cache() if use_cache else None)
    return code


def compile_verbose(file: str, macros: Mapping[str, int], arch: int) -> tuple[ObjectCode, str]:
    """As `compile_kernel`, always compiling, with what the assembler says about registers and spills."""
    return _compile(file, macros, arch, None)


def _compile(file: str, macros: Mapping[str, int], arch: int, cache: Any) -> tuple[ObjectCode, str]:
    if arch < OLDEST_ARCH:
        raise ZigpassError(
            f"zigpass kernels need a GPU of compute capability 7.5 or later, this one is {arch // 10}.{arch % 10};"
            " keep the model on the CPU"
        )
    core = _import_core()
    options = core.ProgramOptions(
        arch=f"sm_{arch}",
        std="c++17",
        define_macro=[(name, str(value)) for name, value in sorted(macros.items())],
        ptxas_options=["-v"],
    )
    started, log = time.perf_counter(), io.StringIO()
    try:
        code = core.Program(kernel_source(file), "c++", options).compile("cubin", logs=log, cache=cache)
    except Exception as error:
        raise ZigpassError(f"NVRTC could not compile {file} for sm_{arch} with {dict(macros)}: {error}") from error
    seconds = time.perf_counter() - started
    if log.getvalue():  # empty when it came from the cache
        _log.info("compiled %s for sm_%d in %.1f s (kept in %s)", file, arch, seconds, cache_folder())
    return code, log.getvalue()


def cache_folder() -> Path:
    """Where cubins are kept."""
    return cache_root() / "cubin"


@functools.cache
def program_cache() -> Any:
    """The cache on disk, or None with one warning when its folder cannot be written."""
    _import_core()
    from cuda.core.utils import FileStreamProgramCache

    folder = cache_folder()
    try:
        return FileStreamProgramCache(folder)
    except OSError as error:
        _log.warning("%s cannot be used as a kernel cache (%s); kernels compile again in every process", folder, error)
        return None


def nvrtc_version() -> tuple[int, int]:
    """Version of the NVRTC that compiles.

    Raises:
        ZigpassError: cuda.core or NVRTC is not installed.
    """
    _import_core()
    from cuda.bindings import nvrtc

    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:
        raise ZigpassError(f"NVRTC is not installed ({error}); {INSTALL_HINT}") from error
    if int(status) != 0:
        raise ZigpassError(f"NVRTC does not answer ({status}); {INSTALL_HINT}")
    return int(major), int(minor)


@functools.cache
def _import_core() -> Any:
    try:
        import cuda.core
    except ImportError as error:
        raise ZigpassError(f"the CUDA path needs the package cuda-core ({error}); {INSTALL_HINT}") from error
    return cuda.core
