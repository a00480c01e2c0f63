"""Memory safety: every kernel at 1, 2 and 4 threads with poisoned allocations, and inputs that end where a page ends.

Runs in a process of its own, because the poison is a setting of the C library and a stray read ends the process.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zigpass.runtime.cpu.variants import AVX2, AVX512_VNNI, PORTABLE, available_variants

SCRIPT = """
import ctypes, mmap, sys
import torch
from zigpass.runtime.cpu import parallel, set_activation_dtype, set_variant
from zigpass.runtime import ColumnScales, GroupScales, QuantizedWeight, pack, reference

libc = ctypes.CDLL(None, use_errno=True)
keep = []

def guarded(tensor):
    # A copy whose last byte is the last of a page; touching the next page ends the process.
    size = tensor.numel() * tensor.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    assert libc.mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=pages - size).view(tensor.shape)
    keep.append(region)
    return copy.copy_(tensor)

def weight(n, k, bits, kind, band):
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    if kind == "column":
        fine, coarse = (-(-n // 32), k), (-(-n // 256), k)
        scales = ColumnScales(*((torch.rand(coarse) * 1e-3).half() for _ in range(2)),
                              *(torch.randint(0, 64, fine, dtype=torch.uint8) for _ in range(2)))
    else:
        shape = (n, -(-k // 32))
        zero = torch.randint(0, 1 << bits, shape, dtype=torch.uint8) if kind == "sub_int" else torch.randn(shape)
        scales = GroupScales((torch.randn(shape) * 0.02).half(), zero, kind, 32)
    packed = pack(QuantizedWeight(codes, bits, scales), band)
    return [guarded(tensor) for tensor in packed.tensors], packed.layout.spec

def near(actual, expected):
    return bool(((actual - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6))

variant, dtype = sys.argv[1:]
set_variant(variant)
set_activation_dtype(dtype)
tolerance = 1e-4 if dtype == "float32" else 0.05
parallel.LEAST_CODES = 0

torch.manual_seed(0)
wrong = runs = 0
for n, k in ((127, 33), (300, 65)):
    for bits in (2, 4, 8):
        for kind in ("sub_int", "add_float", "column"):
            for band in (None, 128)[: 1 + n // 200]:
                w, spec = weight(n, k, bits, kind, band)
                v, spec_v = weight(n, k, 4, "sub_int", band)
                down, spec_down = weight(k, n, bits, kind, band)
                bias = guarded(torch.randn(n))
                for rows, threshold in ((1, None), (1, 0.7), (1, 9.0), (3, None), (40, None)):
                    x = guarded(torch.randn(rows, k))
                    t = None if threshold is None else guarded(torch.full((k,), threshold))
                    a = (x, w, bias, t, spec)
                    b = (x, w + v, [bias, None], t, [spec, spec_v])
                    c = (x, w, v, down, bias, None, None, t, None, spec, spec_v, spec_down, "silu")
                    expected = [reference.linear(*a), reference.gated_mlp(*c), *reference.qkv(*b)]
                    for threads in (1, 2, 4):
                        torch.set_num_threads(threads)
                        ops = torch.ops.zigpass
                        results = [ops.linear(*a), ops.gated_mlp(*c), *ops.qkv(*b)]
                        runs += len(results)
                        wrong += sum(not near(*pair) for pair in zip(results, expected))
    keep.clear()
print(wrong, "wrong of", runs)
"""


CASES = [(AVX512_VNNI, "float32"), (AVX512_VNNI, "int8"), (AVX2, "float32"), (AVX2, "int8"), (PORTABLE, "float32")]


@pytest.mark.skipif(sys.platform != "linux", reason="MALLOC_PERTURB_ is a setting of glibc")
@pytest.mark.parametrize(("variant", "dtype"), CASES)
def test_poisoned_allocations_and_guarded_inputs(variant: str, dtype: str) -> None:
    if variant not in available_variants():
        pytest.skip(f"this CPU cannot run {variant}")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, variant, dtype],
        env={**os.environ, "MALLOC_PERTURB_": "165"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "0 wrong of 1620"
