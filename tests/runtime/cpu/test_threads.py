"""Several threads: the same bits as one, from several callers at once, and in a forked process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from zigpass.runtime.cpu import parallel

linear, qkv = torch.ops.zigpass.linear.default, torch.ops.zigpass.qkv.default
gated_mlp = torch.ops.zigpass.gated_mlp.default

pytestmark = pytest.mark.skipif(not parallel.team_starter(), reason="no OpenMP runtime with GOMP_parallel")


@pytest.fixture(autouse=True)
def threads_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parallel, "LEAST_CODES", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def calls(cpu: Any) -> list[Any]:
    """Functions without arguments, one per op and kind of weight."""
    found = []
    for kind in ("sub_int", "column"):
        w, v = cpu.weight(0, 900, 200, zero_kind=kind), cpu.weight(1, 130, 200, zero_kind=kind, band=128)
        gate, down = cpu.weight(2, 900, 200, zero_kind=kind), cpu.weight(3, 200, 900, zero_kind=kind)
        t, x = torch.tensor([0.4]), cpu.values(4, 1, 200)
        a = (x, list(w.tensors), None, t, w.layout.spec)
        b = (x, [*w.tensors, *v.tensors], [None, None], t, [w.layout.spec, v.layout.spec])
        specs = (gate.layout.spec, w.layout.spec, down.layout.spec, "silu")
        c = (x, list(gate.tensors), list(w.tensors), list(down.tensors), None, None, None, t, None, *specs)
        found += [
            lambda a=a: linear(*a),
            lambda b=b: torch.cat(qkv(*b), -1),
            lambda c=c: gated_mlp(*c),
            lambda a=a: linear(a[0].expand(5, -1), *a[1:]),
        ]
    return found


def test_any_number_of_threads_gives_the_same_bits(cpu: Any) -> None:
    for call in calls(cpu):
        results = []
        for threads in (1, 2, 3, 4, 16):
            torch.set_num_threads(threads)
            results.append(call())
        assert all(torch.equal(result, results[0]) for result in results)


def test_several_python_threads_at_once(cpu: Any) -> None:
    torch.set_num_threads(2)
    work = calls(cpu)
    expected = [call() for call in work]

    def many(first: int) -> bool:
        torch.set_num_threads(2)
        order = [(first + i) % len(work) for i in range(60)]
        return all(torch.equal(work[i](), expected[i]) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(4)))


def test_torch_and_zigpass_take_turns(cpu: Any) -> None:
    torch.set_num_threads(2)
    work = calls(cpu)
    expected = [call() for call in work]
    big = torch.ones(256, 256)
    for i in range(100):
        assert float((big @ big)[0, 0]) == 256
        assert torch.equal(work[i % len(work)](), expected[i % len(work)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python warns about forking a process with threads")
def test_a_forked_process_does_not_hang(cpu: Any) -> None:
    torch.set_num_threads(2)
    work = calls(cpu)
    expected = [call() for call in work]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(torch.equal(call(), y) for call, y in zip(work, expected, strict=True)) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_small_work_stays_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.set_num_threads(4)
    assert parallel.team(1000) == (0, 1)
    assert parallel.team(1 << 24) == (parallel.team_starter(), 4)
