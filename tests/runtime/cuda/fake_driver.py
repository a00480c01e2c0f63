"""A GPU that is not there: tensors stay on the CPU and launches are written down, to test the host side."""

import ctypes
import dataclasses
from types import SimpleNamespace

import torch

from zigpass.runtime.cuda import calls, gemv, launch, operators, plan
from zigpass.runtime.cuda.arguments import Arguments
from zigpass.runtime.cuda.device import Device

DEVICE = Device(0, "a GPU", 90, 132, 227 << 10)


class Status(int):
    """A CUresult: a number with a name."""

    name = "CUDA_SUCCESS"


@dataclasses.dataclass
class Launched:
    """One launch: the kernel's name, its grid and stream, and a copy of its arguments."""

    name: str
    grid: tuple[int, int]
    stream: int
    arguments: Arguments


def arguments_at(parameters):
    """A copy of the arguments of a launch, from the address of the array of their addresses."""
    address = ctypes.c_void_p.from_address(parameters).value
    return Arguments.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Arguments)))


class FakeDriver:
    """Stands for `cuda.bindings.driver`.

    Attributes:
        launched: what was launched, in order.
        status: what the next launches answer.
        stream: handle of the current stream.
        functions: how many kernels were asked for.
        reads: called with the arguments of a launch while the memory they point to is there.
    """

    def __init__(self):
        self.launched = []
        self.status = Status(0)
        self.stream = 0
        self.functions = 0
        self.reads = lambda arguments: None

    CUlaunchConfig = SimpleNamespace

    def cuLaunchKernelEx(self, config, handle, parameters, extra):
        arguments = arguments_at(parameters)
        self.reads(arguments)
        self.launched.append(Launched(handle, (config.gridDimX, config.gridDimY), config.hStream, arguments))
        return (self.status,)

    def cuGetErrorString(self, status):
        return Status(0), b"what the driver says"

    def get_function(self, device, file, name, macros, threads, shared=0, dependent=False):
        self.functions += 1
        function = object.__new__(launch.Function)
        function._driver, function._handle, function._label = self, name, f"{name} of {file}"
        function._threads, function._shared, function._configs, function._attributes = threads, shared, {}, []
        return function

    def x_key(self, x):
        return x.shape, x.dtype, x.is_contiguous(), x.data_ptr() % 16, 0, 0, self.stream


def install(monkeypatch, driver=None, device=DEVICE):
    """Put a `FakeDriver` in the place of the driver and of torch's CUDA calls; prepared calls are forgotten."""
    driver = driver or FakeDriver()
    monkeypatch.setattr(plan, "get_function", driver.get_function)
    monkeypatch.setattr(calls, "empty_strided", torch._C._dynamo.guards._empty_strided_cpu)
    monkeypatch.setattr(operators, "x_key", driver.x_key)
    monkeypatch.setattr(operators, "ensure_context", lambda: None)
    for module in (operators, gemv):
        monkeypatch.setattr(module, "current_stream", lambda index: driver.stream)
    for module in (operators, plan):
        monkeypatch.setattr(module, "get_device", lambda index: device)
    plan.get_plan.cache_clear()
    calls.forget()
    return driver
