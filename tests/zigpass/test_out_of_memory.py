"""A GPU that runs full while a model is packed: which layer, which numbers, and what is left."""

import sys

import pytest
import torch
from torch import nn

import zigpass
from tests.weights import random_weight
from zigpass.linear import find_linears
from zigpass.runtime import ZigpassError, pack
from zigpass.tools.quantized_modules import GptqLinear

TORCHS_WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free."
    " Of the allocated memory 70 GiB is allocated by PyTorch. See documentation for Memory Management"
)
NUMBERS = r"\(CUDA out of memory\. Tried to allocate 2\.00 GiB\. GPU 0 has .* of which 1\.20 GiB is free\)"


@pytest.fixture
def full_after(monkeypatch):
    """Lets `count` weights be packed and then runs out of memory."""
    module = sys.modules[pack.__module__]  # the package exports the function under the same name
    pack_codes = module.pack_codes

    def limit(count):
        left = [count]

        def pack_some(*args):
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError(TORCHS_WORDS)
            return pack_codes(*args)

        monkeypatch.setattr(module, "pack_codes", pack_some)

    return limit


def test_pack_names_the_layout_the_numbers_and_the_way_out(full_after):
    full_after(0)
    message = (
        rf"^packing zigzag1:4bit:96x64:in32:sub_int:band128 on cpu ran out of memory {NUMBERS};"
        r" free some, or pack it on the CPU and move the result$"
    )
    with pytest.raises(ZigpassError, match=message):
        pack(random_weight(96, 64, 4, "in"))


def test_prepare_names_the_layer_and_goes_on_when_called_again(full_after):
    model = nn.Sequential(*(GptqLinear(64, 64, seed=seed) for seed in range(3)))
    full_after(1)
    with pytest.raises(ZigpassError, match=rf"^1: packing zigzag1.* {NUMBERS}.*; the layers before it are packed"):
        zigpass.prepare(model, progress=False)
    assert [name for name, _ in find_linears(model)] == ["0"]
    full_after(2)
    zigpass.prepare(model, progress=False)
    assert [name for name, _ in find_linears(model)] == ["0", "1", "2"]


def test_prepare_changes_nothing_when_there_is_no_memory_to_compare(monkeypatch):
    def run_out(*args):
        raise torch.OutOfMemoryError(TORCHS_WORDS)

    model = nn.Sequential(GptqLinear(64, 64))
    monkeypatch.setattr(sys.modules[zigpass.prepare.__module__], "check_recovered", run_out)
    with pytest.raises(ZigpassError, match=rf"0: comparing it with its own library ran out of memory {NUMBERS}"):
        zigpass.prepare(model, progress=False)
    assert isinstance(model[0], GptqLinear)


def test_quantize_names_the_layer(full_after):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    full_after(1)
    with pytest.raises(ZigpassError, match=rf"^1: packing .* ran out of memory {NUMBERS}"):
        zigpass.quantize_(model, progress=False)
    assert [name for name, _ in find_linears(model)] == ["0"]


@pytest.mark.cuda
def test_a_full_gpu():
    codes = torch.zeros(8192, 8192, dtype=torch.uint8, device="cuda")
    weight = random_weight(128, 8192, 4, "in", group_size=128)
    scales = weight.scales
    wide = type(scales)(scales.scale.repeat(64, 1).cuda(), scales.zero.repeat(64, 1).cuda(), "sub_int", 128)
    quantized = type(weight)(codes, 4, wide)
    torch.cuda.empty_cache()
    limit = (torch.cuda.memory_reserved() + (64 << 20)) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        with pytest.raises(ZigpassError, match=r"packing zigzag1:4bit:8192x8192.* on cuda:0 ran out of memory"):
            pack(quantized)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert pack(quantized).layout.n == 8192
