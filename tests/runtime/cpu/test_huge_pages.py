"""Packed weights move into huge pages where the kernel has them, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from zigpass.runtime.cpu import huge_pages
from zigpass.runtime.cpu.huge_pages import HUGE_PAGES_VARIABLE, MADV_COLLAPSE, ask_for_huge_pages, usable_advice
from zigpass.tools.env import environment

linear = torch.ops.zigpass.linear.default
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
needs_collapse = pytest.mark.skipif(
    usable_advice() != MADV_COLLAPSE, reason=f"this kernel moves memory {huge_pages.describe()}, not at once"
)


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (address, length) of every piece of memory that the kernel is asked about; it always refuses."""
    asked: list[tuple[int, int]] = []

    def refuse(address: int, length: int, advice: int) -> bool:
        asked.append((address, length))
        return False

    monkeypatch.setattr(huge_pages, "_madvise", refuse)
    monkeypatch.setattr(huge_pages, "usable_advice", lambda: MADV_COLLAPSE)
    monkeypatch.setattr(huge_pages, "huge_page_size", lambda: 1 << 21)
    return asked


def huge_bytes(tensor: torch.Tensor) -> int:
    """Bytes in huge pages of the mappings that a tensor lies in."""
    first, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if "-" in head[0] and not head[0].endswith(":"):
            start, stop = (int(part, 16) for part in head[0].split("-"))
            inside = start < end and first < stop
        elif inside and head[0] == "AnonHugePages:":
            total += int(head[1]) * 1024
    return total


def random_words(megabytes: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (megabytes << 18,), dtype=torch.int32)


@needs_collapse
def test_memory_moves_and_keeps_its_contents() -> None:
    tensor = random_words(16)
    before, copy, address = huge_bytes(tensor), tensor.clone(), tensor.data_ptr()
    agreed = ask_for_huge_pages([tensor])
    if not agreed:
        pytest.skip("the kernel has no huge pages to spare")
    assert agreed % huge_pages.huge_page_size() == 0
    assert huge_bytes(tensor) >= before + agreed
    assert torch.equal(tensor, copy)
    assert tensor.data_ptr() == address


@needs_collapse
def test_the_first_call_of_an_op_moves_its_weight(cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = cpu.weight(0, 2048, 4096)  # 4 MB of codes
    x, threshold, spec = cpu.values(1, 1, 4096), torch.tensor([0.5]), packed.layout.spec
    other = [tensor.clone() for tensor in packed.tensors]
    with monkeypatch.context() as patch:
        patch.setenv(HUGE_PAGES_VARIABLE, "0")
        expected = linear(x, other, None, threshold, spec)
    before = huge_bytes(packed.tensors[0])
    assert torch.equal(linear(x, list(packed.tensors), None, threshold, spec), expected)
    if not ask_for_huge_pages(packed.tensors):
        pytest.skip("the kernel has no huge pages to spare")
    assert huge_bytes(packed.tensors[0]) > before


def test_which_pages_are_asked_for(advice: list[tuple[int, int]]) -> None:
    large, small = random_words(9), random_words(1)
    assert ask_for_huge_pages([large, small[:100], small]) == 0
    ((address, length),) = [piece for piece in advice if piece[1] > 1 << 21]
    assert address % (1 << 21) == length % (1 << 21) == 0
    assert large.data_ptr() <= address
    assert address + length <= large.data_ptr() + large.numel() * 4
    assert length >= 6 << 20
    ends = [piece for piece in advice if piece[1] == 1 << 21]  # the pages that the first and the last byte lie in
    assert all(address % (1 << 21) == 0 for address, _ in ends)
    assert any(address <= small.data_ptr() < address + (1 << 21) for address, _ in ends)


def test_a_refusal_changes_nothing_and_is_asked_once(cpu: Any, advice: list[tuple[int, int]]) -> None:
    packed = cpu.weight(0, 4096, 2048)
    args = (cpu.values(1, 1, 2048), list(packed.tensors), None, torch.tensor([0.5]), packed.layout.spec)
    y = linear(*args)
    asked = len(advice)
    assert asked
    assert torch.equal(linear(*args), y)
    assert len(advice) == asked


def test_the_kernel_refuses_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    data = torch.arange(8 << 18, dtype=torch.int32)
    data.numpy().tofile(path)
    mapped = torch.from_file(str(path), shared=False, size=data.numel(), dtype=torch.int32)
    ask_for_huge_pages([mapped])
    assert torch.equal(mapped, data)


@pytest.mark.parametrize("value", ["0", "off"])
def test_the_switch(monkeypatch: pytest.MonkeyPatch, advice: list[tuple[int, int]], value: str) -> None:
    monkeypatch.setenv(HUGE_PAGES_VARIABLE, value)
    assert ask_for_huge_pages([random_words(8)]) == 0
    assert not advice
    assert environment()["huge_pages"] == f"off ({HUGE_PAGES_VARIABLE})"


def test_a_kernel_without_huge_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "_PAGE_SIZE_FILE", tmp_path / "missing")
    huge_pages.huge_page_size.cache_clear()
    usable_advice.cache_clear()
    try:
        assert usable_advice() is None
        assert ask_for_huge_pages([random_words(8)]) == 0
        assert environment()["huge_pages"] == "not available"
    finally:
        huge_pages.huge_page_size.cache_clear()
        usable_advice.cache_clear()
