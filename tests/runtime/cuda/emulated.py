"""The CUDA kernels on a CPU: their own source, compiled for the host with `emulator.h`, behind the fake driver."""

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from zigpass.runtime.cuda.compiler import kernel_source
from zigpass.runtime.cuda.device import Device

from . import fake_driver

DEVICE = Device(0, "a small GPU", 90, 3, 227 << 10)
"""Few blocks, so that each has much to do and some cross a tile."""
HEADER = Path(__file__).with_name("emulator.h")
COMPILER = shutil.which("g++")
OLDEST_COMPILER = 12
"""The first g++ with `_Float16` in C++."""

# What the kernels spell in PTX, in plain C++.
BODIES = {
    "from_f16": "return emulator::half_to_float(bits);",
    "to_f16": "return emulator::float_to_half(value);",
    "any_bits": "return 0x7fff5a5au;",
    "load_streaming": "return *static_cast<const uint4*>(address);",
    "prefetch_l2": "",
    "copy_16_to_shared": "*static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);",
    "close_copies": "",
    "wait_for_copies_but": "",
    "launch_dependents": "",
    "wait_for_previous_kernel": "",
    "mma_16x8x16": "emulator::mma_16x8x16(d, {a0, a1, a2, a3}, {b0, b1});",
    "lanes_below": "return (1u << threadIdx.x % 32) - 1;",
    "add_below": (
        "const int lane = threadIdx.x % 32; const auto slots = emulator::exchange(value);"
        " if (lane >= offset) value += emulator::brought<int>(slots, lane - offset);"
    ),
    "keep_step": "",
}
ENTRIES = """
extern "C" void run_zigzag_gemv(const Arguments* a, int x, int y, int threads) {
  emulator::run(x, y, threads, [](const void* a) { zigzag_gemv(*static_cast<const Arguments*>(a)); }, a);
}
extern "C" void run_zigzag_combine(const Arguments* a, int x, int y, int threads) {
  emulator::run(x, y, threads, [](const void* a) { zigzag_combine(*static_cast<const Arguments*>(a)); }, a);
}
"""


def why_not():
    """Why kernels cannot be compiled for the host here; None where they can."""
    if COMPILER is None or not sys.platform.startswith("linux"):
        return "kernels run on the CPU where there is Linux and g++"
    version = subprocess.run([COMPILER, "-dumpversion"], check=True, capture_output=True, text=True).stdout
    if int(version.split(".")[0]) < OLDEST_COMPILER:
        return f"g++ {version.strip()} has no _Float16, {OLDEST_COMPILER} has"
    return None


@functools.cache
def host_source():
    """`gemv.cu` as C++ for the host."""
    source = kernel_source("gemv.cu")
    for name, body in BODIES.items():
        # A function that ends on its line, or with a closing brace at the start of one.
        pattern = rf"^(DEVICE [\w ]+ {name}\([^{{]*\) {{)(?:[^\n]*}}$|.*?^}}$)"
        source, count = re.subn(pattern, lambda m, body=body: f"{m[1]} {body} }}", source, flags=re.M | re.S)
        assert count == 1, f"{name}: {count}"
    source = re.sub(r'^ *asm\("" : "\+l".*$', "", source, flags=re.M)
    source = source.replace(
        "extern __shared__ __align__(16) u8 shared_bytes[];", "u8* shared_bytes = (u8*)emulator::shared_bytes;"
    )
    assert "asm" not in source
    return f'#include "{HEADER}"\n{source}\n{ENTRIES}'


@functools.cache
def library(folder, macros):
    """The compiled kernels of a specialization; -O1 compiles in a second or two."""
    source = host_source()
    name = hashlib.sha256(repr((source, macros, HEADER.read_text())).encode()).hexdigest()[:16]
    path = folder / f"{name}.cpp"
    path.write_text(source)
    flags = ["-std=c++17", "-O1", "-march=native", "-w", "-shared", "-fPIC", *(f"-D{n}={v}" for n, v in macros)]
    subprocess.run([COMPILER, *flags, str(path), "-o", str(path.with_suffix(".so"))], check=True)
    return ctypes.CDLL(str(path.with_suffix(".so")))


class EmulatedDriver(fake_driver.FakeDriver):
    """A `FakeDriver` whose launches run."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.entries = folder, {}

    def get_function(self, device, file, name, macros, threads, shared=0, dependent=False):
        function = super().get_function(device, file, name, macros, threads, shared, dependent)
        run = getattr(library(self.folder, tuple(sorted(macros.items()))), f"run_{name}")
        function._handle = len(self.entries)
        self.entries[function._handle] = run, threads
        return function

    def cuLaunchKernelEx(self, config, handle, parameters, extra):
        run, threads = self.entries[handle]
        run(ctypes.byref(fake_driver.arguments_at(parameters)), config.gridDimX, config.gridDimY, threads)
        return (self.status,)


def install(monkeypatch, folder):
    """As `fake_driver.install`, with an `EmulatedDriver`."""
    return fake_driver.install(monkeypatch, EmulatedDriver(folder), DEVICE)
