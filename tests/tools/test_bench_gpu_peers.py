"""Which peers `zigpass bench gemv|mlp` times, and what it says of those it cannot time."""

import importlib.util

import pytest
import torch

from zigpass.tools import bench_gpu_peers as tool


@pytest.fixture
def installed(monkeypatch):
    """Says which packages are there."""
    names = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in names else None)
    return names


def test_a_peer_that_is_not_installed_is_named_and_not_timed(installed, capsys):
    made = []
    times = tool.time_peers(lambda make: float(made.append(make) or len(made)))
    assert times == {"tinygemm_us": 1.0, "cublas_bf16_us": 2.0, "gemlite_us": None}
    assert made == [tool.tinygemm, tool.cublas_bf16]
    assert capsys.readouterr().out == "gemlite: not installed, so not compared (pip install gemlite)\n"


def test_a_peer_that_fails_is_named_and_the_others_are_timed(installed, capsys):
    installed.add("gemlite")

    def measure(make):
        if make is tool.gemlite:
            raise RuntimeError("no such GPU")
        return 3.0

    assert tool.time_peers(measure) == {"tinygemm_us": 3.0, "cublas_bf16_us": 3.0, "gemlite_us": None}
    assert "gemlite: failed, so not compared (RuntimeError: no such GPU)" in capsys.readouterr().out


def test_a_peer_that_is_installed_is_timed(installed, capsys):
    installed.add("gemlite")
    assert tool.time_peers(lambda make: 5.0)["gemlite_us"] == 5.0
    assert not capsys.readouterr().out


def test_a_peer_that_must_work_is_not_dropped(installed):
    def fail(make):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        tool.time_peers(fail)


@pytest.mark.cuda
@pytest.mark.parametrize("make", [tool.tinygemm, tool.cublas_bf16, tool.gemlite])
def test_peers_multiply(make):
    if make is tool.gemlite:
        pytest.importorskip("gemlite")
    x = torch.randn(1, 512, device="cuda", dtype=torch.bfloat16)
    assert make(256, 512)(3, x).shape == (1, 256)
