"""Peak memory of `prepare`, measured by the operating system in a process of its own."""

import json
import subprocess
import sys

import pytest

from tests.test_packaging import ROOT

LINEARS_OF_A_LAYER = 7
"""q, k, v, o, gate, up and down: "one layer" below is these in float32."""

# The peak (VmHWM) is reset right before `prepare`, so that only what lives then counts.
SCRIPT = """
import copy, gc, json
import torch
from torch import nn
from zigpass.tools.quantized_modules import GptqLinear
from zigpass.linear import find_linears
from zigpass.prepare import prepare

torch.set_num_threads(1)
LINEARS, SIZE = {linears}, 1024


def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def intx(n, k):
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    holder = nn.Sequential(nn.Linear(k, n, bias=False, dtype=torch.bfloat16))
    quantize_(holder, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(128)))
    return holder[0]


def gptq(n, k):
    GptqLinear.dequantize_weight = GptqLinear.weight  # once a layer, instead of unit vectors in pieces
    return GptqLinear(n, k, 128)


prepare(nn.Sequential({make}(128, 256)), progress=False)  # loads the code that is used
template = {make}(SIZE, SIZE)
before = status("VmRSS")
model = nn.Sequential(*[copy.deepcopy(template) for _ in range(LINEARS)])
gc.collect()
start = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
prepare(model, progress=False)
peak = status("VmHWM")
packed = sum(linear.packed.num_bytes for _, linear in find_linears(model))
print(json.dumps({{"original": start - before, "above": peak - before, "packed": packed, "linear": SIZE * SIZE * 4}}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("make", ["gptq", "intx"])
def test_peak_memory_is_the_packed_model_and_one_layer(make):
    if make == "intx":
        pytest.importorskip("torchao", reason="torchao is not installed")
    command = [sys.executable, "-c", SCRIPT.format(make=make, linears=16 * LINEARS_OF_A_LAYER)]
    # Large pieces go back to the system when they are freed, so that the peak is what was in use.
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    sizes = json.loads(result.stdout.splitlines()[-1])
    layer = LINEARS_OF_A_LAYER * sizes["linear"]
    assert sizes["packed"] > 2 * layer  # large enough that a second copy would be seen
    # The original is there before anything is packed; torchao's takes twice the packed size, 8 bits a weight.
    floor = max(sizes["packed"], sizes["original"])
    assert sizes["above"] < floor + 0.3 * sizes["packed"] + layer, sizes
