"""Loading cubins and launching them on torch's current stream."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from ..errors import ZigpassError
from .arguments import Arguments
from .compiler import compile_kernel
from .device import Device, ensure_context

FIRST_ARCH_WITH_DEPENDENT_LAUNCH = 90
MOST_CONFIGS = 64
"""Launch configurations that a function keeps, one per grid and stream."""
_lock = threading.Lock()
_functions: dict[tuple[Any, ...], Function] = {}


LASTING_FAILURES = frozenset(
    (
        "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_NVLINK_UNCORRECTABLE", "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_LAUNCH_TIMEOUT", "CUDA_ERROR_CONTEXT_IS_DESTROYED", "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_HARDWARE_STACK_ERROR", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_MISALIGNED_ADDRESS",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE", "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_LAUNCH_FAILED",
    )
)  # fmt: skip
"""What the driver answers to every call of a process once a kernel has failed ("leaves the process in an inconsistent
state" in its reference); the kernel that failed is an earlier one, of whatever library."""


def describe_failure(label: str, status: Any, driver: Any) -> str:
    """A failed driver call in words, with the way out."""
    failed, text = driver.cuGetErrorString(status)
    said = f": {text.decode()}" if int(failed) == 0 and text else ""
    message = f"launching {label} failed with {status.name}{said}"
    if status.name in LASTING_FAILURES:
        return (
            f"{message}. An earlier kernel of this process failed, and no CUDA call works after that: start the process"
            " again, with CUDA_LAUNCH_BLOCKING=1 to see which kernel it is"
        )
    return message


class Function:
    """A loaded kernel of one device with fixed block size and shared memory."""

    def __init__(
        self, device: Device, file: str, name: str, macros: dict[str, int], threads: int, shared: int, dependent: bool
    ) -> None:
        from cuda.bindings import driver

        ensure_context()
        self._code = compile_kernel(file, macros, device.arch)
        self._driver = driver
        kernel = self._code.get_kernel(name).handle
        self._handle = driver.CUfunction(int(kernel))
        self._label = f"{name} of {file}"
        self._threads, self._shared = threads, shared
        self._configs: dict[tuple[tuple[int, int], int], Any] = {}
        self._attributes = []
        if device.arch >= FIRST_ARCH_WITH_DEPENDENT_LAUNCH and dependent:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            self._attributes = [attribute]
        if shared > 48 << 10:
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.check(driver.cuKernelSetAttribute(limit, shared, kernel, driver.cuDeviceGet(device.index)[1]))

    def launch(self, grid: tuple[int, int], stream: int, parameters: int) -> None:
        """Launch on the stream with this handle.

        Args:
            parameters: address of the array of parameter addresses; read before this returns.

        Raises:
            ZigpassError: the driver refused the launch; its name for the reason.
        """
        config = self._configs.get((grid, stream)) or self._configure(grid, stream)
        self.check(self._driver.cuLaunchKernelEx(config, self._handle, parameters, 0))

    def _configure(self, grid: tuple[int, int], stream: int) -> Any:
        """The launch configuration, kept because filling one in takes longer than the launch; never changed again."""
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY = grid
        config.gridDimZ = config.blockDimY = config.blockDimZ = 1
        config.blockDimX = self._threads
        config.sharedMemBytes = self._shared
        config.hStream = stream
        if self._attributes:
            config.attrs = self._attributes
            config.numAttrs = 1
        if len(self._configs) >= MOST_CONFIGS:
            self._configs.clear()
        self._configs[grid, stream] = config
        return config

    def bind(self, grid: tuple[int, int], stream: int, arguments: Arguments) -> Callable[[], None]:
        """A launch of a kernel whose only parameter is `Arguments`, to be repeated: it takes what they hold then.

        The driver reads them before the call returns. The call raises `ZigpassError` when the driver refuses.
        """
        config = self._configs.get((grid, stream)) or self._configure(grid, stream)
        address = ctypes.c_void_p(ctypes.addressof(arguments))
        call = functools.partial(
            self._driver.cuLaunchKernelEx, config, self._handle, ctypes.addressof(address), 0
        )  # fmt: skip
        check = self.check

        def launch(_keep_alive: object = (address, arguments)) -> None:
            result = call()
            if result[0]:
                check(result)

        return launch

    def check(self, result: tuple[Any, ...]) -> None:
        """Raise `ZigpassError` unless the driver reports success."""
        if int(result[0]) != 0:
            raise ZigpassError(describe_failure(self._label, result[0], self._driver))


def get_function(
    device: Device, file: str, name: str, macros: dict[str, int], threads: int, shared: int = 0, dependent: bool = False
) -> Function:
    """The kernel, compiled and loaded at its first use on a device; `dependent` when it waits for the one before."""
    key = (device.index, name, *sorted(macros.items()))
    found = _functions.get(key)
    if found is None:
        with _lock:
            found = _functions.get(key)
            if found is None:
                found = _functions[key] = Function(device, file, name, macros, threads, shared, dependent)
    return found


def current_stream(index: int) -> int:
    """The handle of torch's current stream on a device, without making a stream object of it."""
    handle: int = torch._C._cuda_getCurrentRawStream(index)
    return handle
