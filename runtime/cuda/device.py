"""What the runtime knows of a GPU: architecture and sizes."""

from __future__ import annotations

import dataclasses
import functools
import threading

import torch

from ..errors import ZigpassError
from .compiler import OLDEST_ARCH

_thread = threading.local()


@dataclasses.dataclass(frozen=True, eq=False)
class Device:
    """One GPU.

    Attributes:
        index: torch's device index.
        arch: compute capability as one number, 90 for 9.0.
        multiprocessors: how many blocks of one a multiprocessor fill one wave.
        shared_limit: bytes of shared memory that a block may ask for.
    """

    index: int
    name: str
    arch: int
    multiprocessors: int
    shared_limit: int


@functools.cache
def get_device(index: int) -> Device:
    """The GPU with this index.

    Raises:
        ZigpassError: it is older than the kernels support.
    """
    properties = torch.cuda.get_device_properties(index)
    arch = 10 * properties.major + properties.minor
    if arch < OLDEST_ARCH:
        raise ZigpassError(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}, zigpass kernels need 7.5"
            " or later; keep the model on the CPU"
        )
    return Device(
        index=index,
        name=properties.name,
        arch=arch,
        multiprocessors=properties.multi_processor_count,
        shared_limit=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # only in CUDA builds' stubs
    )


def ensure_context() -> None:
    """Make torch's context current in this thread: the driver API, unlike the runtime, does not by itself."""
    if not getattr(_thread, "ready", False):
        torch.cuda.set_device(torch.cuda.current_device())
        _thread.ready = True
