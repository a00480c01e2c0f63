"""Compiled kernels on disk: reused, checked, and never in the way."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zigpass.runtime.cpu.cache import cache_folder, cache_root
from zigpass.runtime.cpu.compile import Kernel, kernel
from zigpass.runtime.cpu.memory import int64_pointer, store


def make_kernel() -> Kernel:
    @kernel
    def write_sum(a: int, b: int, out: int) -> None:
        store(int64_pointer(out), 0, a + b)

    return write_sum


def check(fresh: Kernel) -> None:
    out = np.zeros(1, np.int64)
    fresh(40, 2, out.ctypes.data)
    assert out[0] == 42


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", str(tmp_path / "cache"))
    caplog.set_level(logging.DEBUG, logger="zigpass.runtime.cpu")
    return tmp_path / "cache"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_second_time_is_read_from_disk(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(make_kernel())
    assert [path.name.split("-")[0] for path in files(folder)] == ["write_sum"]
    assert sum("compiled kernel write_sum" in message for message in caplog.messages) == 1
    caplog.clear()
    check(make_kernel())
    assert caplog.messages == []


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "pickle"])
def test_a_damaged_file_is_replaced(folder: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    check(make_kernel())
    (path,) = files(folder)
    content = path.read_bytes()
    changed = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "bit": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "pickle": pickle.dumps("something else"),
    }
    path.write_bytes(changed[damage])
    caplog.clear()
    check(make_kernel())
    (message,) = warnings(caplog)
    assert str(path.parent) in message
    assert "ZIGPASS_CACHE_DIR" in message
    caplog.clear()
    check(make_kernel())
    assert caplog.messages == [], "the damaged file was not replaced"


def test_a_folder_that_cannot_be_written_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where the folder should be")
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", str(occupied))
    check(make_kernel())
    check(make_kernel())
    (message,) = warnings(caplog)
    assert str(occupied) in message
    assert occupied.read_text() == "a file where the folder should be"


def test_folders_that_were_not_used_for_long_are_deleted(folder: Path) -> None:
    name = "0123456789abcdef0123"
    for age in range(10):
        old = folder / "numba" / f"{name[:-1]}{age}"
        old.mkdir(parents=True)
        (old / "kernel.bin").write_bytes(b"")
        os.utime(old, (1000 - age, 1000 - age))
    check(make_kernel())
    left = sorted(path.name for path in (folder / "numba").iterdir())
    assert len(left) == 4
    assert {f"{name[:-1]}{age}" for age in range(3)} <= set(left)


def test_the_variable_moves_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == folder
    monkeypatch.delenv("ZIGPASS_CACHE_DIR")
    assert cache_root().name == "zigpass"


def test_an_op_runs_without_a_cache(tmp_path: Path) -> None:
    """The real thing in a fresh process: a warning a user sees, and a right answer."""
    occupied = tmp_path / "occupied"
    occupied.write_text("")
    script = """
import torch
from zigpass.runtime import GroupScales, QuantizedWeight, pack
codes = torch.ones(2, 3, dtype=torch.uint8)
scales = GroupScales(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.uint8), "sub_int", 32)
packed = pack(QuantizedWeight(codes, 4, scales))
x = torch.ones(2, 3)
print(torch.ops.zigpass.linear(x, list(packed.tensors), None, None, packed.layout.spec).tolist())
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ZIGPASS_CACHE_DIR": str(occupied)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[[3.0, 3.0], [3.0, 3.0]]"
    assert result.stderr.count("is not usable") == 1
    assert str(occupied) in result.stderr


def test_an_edit_after_the_import_does_not_claim_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_folder(("cpu",))
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"edited")
    assert cache_folder(("cpu",)) == before


VARIANTS_SCRIPT = """
import sys
import numpy as np
from zigpass.runtime.cpu.compile import jit_for, kernel
from zigpass.runtime.cpu.memory import int64_pointer, store

def make(variant, value):
    @jit_for(variant)
    def helper(out):  # too large to become a part of its caller
        array = np.full(5, value)
        for i in range(9):
            array = np.concatenate((np.sort(array), np.flip(array[i:])))
        store(int64_pointer(out), 0, array[0])

    def write(out):
        helper(out)
        helper(out)

    return kernel(write, f"write_{variant}")

for variant in sys.argv[1:]:
    out = np.zeros(1, np.int64)
    make(variant, {"first": 1, "second": 2}[variant])(out.ctypes.data)
    print(variant, out[0])
"""


def test_variants_from_several_processes_do_not_mix(folder: Path) -> None:
    """Each kernel is compiled by another process, which numbers its functions from the start; a third loads both."""
    for variants in (["first"], ["second"], ["first", "second"], ["second", "first"]):
        result = subprocess.run(
            [sys.executable, "-c", VARIANTS_SCRIPT, *variants], env=dict(os.environ), capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert result.stdout.split() == [word for v in variants for word in (v, {"first": "1", "second": "2"}[v])]
    assert len(files(folder)) == 2
