"""Kernels compiled for other CPUs than this one, also for such with less than it has.

Numba takes the CPU to compile for from the environment when it is imported, so each runs in a process of its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from zigpass.runtime.cpu.compile import target_cpu
from zigpass.runtime.cpu.variants import AVX512_VNNI, available_variants

SCRIPT = """
import torch
from zigpass.runtime import ColumnScales, GroupScales, QuantizedWeight, pack, reference
from zigpass.runtime.cpu.variants import available_variants, current_variant

print(*available_variants())
torch.manual_seed(0)
n, k = 300, 96
codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
group = GroupScales((torch.randn(n, 3) * 0.02).half(), torch.randint(0, 16, (n, 3), dtype=torch.uint8), "sub_int", 32)
column = ColumnScales(*((torch.rand(2, k) * 1e-3).half() for _ in range(2)),
                      *(torch.randint(0, 64, (10, k), dtype=torch.uint8) for _ in range(2)))
for scales in (group, column):
    packed = pack(QuantizedWeight(codes, 4, scales))
    for rows, threshold in ((1, None), (1, 0.7), (3, None)):
        x = torch.randn(rows, k)
        t = None if threshold is None else torch.tensor([threshold])
        args = (x, list(packed.tensors), None, t, packed.layout.spec)
        torch.testing.assert_close(torch.ops.zigpass.linear(*args), reference.linear(*args), rtol=1e-4, atol=1e-4)
assembly = "".join(current_variant().project._dispatcher.inspect_asm().values())
print(*(word in assembly for word in ("vpmaddubsw", "ymm", "zmm", "prefetcht0")))
"""
AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+cx16"
AVX512 = AVX2 + ",+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx512vnni"
CASES = {
    "icelake": ("icelake-server", AVX512, ["avx512_vnni avx2 portable", "False True True True"]),
    "zen": ("znver4", AVX512, ["avx512_vnni avx2 portable", "False True True False"]),
    "avx2": ("haswell", AVX2, ["avx2 portable", "True True False True"]),
    "plain": ("x86-64", "+sse,+sse2", ["portable", "False False False False"]),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are x86 CPUs")
@pytest.mark.parametrize("name", CASES)
def test_kernels_for_a_smaller_cpu(name: str, tmp_path: os.PathLike[str]) -> None:
    cpu, features, printed = CASES[name]
    if features == AVX512 and AVX512_VNNI not in available_variants():
        pytest.skip("this CPU has no AVX-512 VNNI")
    if cpu.startswith("znver") and target_cpu().startswith("znver"):
        pytest.skip("what every other test runs here")
    if cpu == "haswell" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
        pytest.skip("this CPU has no AVX2")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "ZIGPASS_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines() == printed
