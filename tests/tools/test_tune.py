"""The search of `zigpass tune` and what it reads and writes, with a made-up GPU."""

import json
import math

import pytest

from zigpass.runtime import ZigpassError
from zigpass.runtime.cuda.specialization import LaunchConfig
from zigpass.runtime.cuda.tables import Entry, read_table
from zigpass.tools import tune as tool

BEST = LaunchConfig(2, 8, 1, 2, early=64, early_dense=128, lockstep=True)


class MadeUpCase:
    """A launch whose time grows with every field that differs from `BEST`."""

    n, k = 4096, 4096

    def __init__(self, fits=lambda config: True):
        self.fits, self.timed, self.compiled = fits, [], []

    def compile(self, configs, sparsity):
        self.compiled += configs

    def time(self, config, sparsity):
        if not self.fits(config):
            raise ZigpassError("too large")
        self.timed.append((config, sparsity))
        names = ("row_warps", "column_warps", "blocks_per_sm", "depth", "lockstep")
        names += ("early_dense",) if sparsity is None else ("early",)
        return 10 + sum(getattr(config, name) != getattr(BEST, name) for name in names)

    def time_alone(self, config, sparsity):
        """Sparse launches cost one more and gain 2 of 10 at full sparsity: even at one half."""
        return 10 if sparsity is None else 11 - 2 * sparsity


def clock(step):
    now = -step

    def tick():
        nonlocal now
        now += step
        return now

    return tick


def test_the_search_finds_the_fastest_and_then_refines_it():
    case = MadeUpCase()
    config, us, tried = tool.search(case, "in", 0.5, 1e9)
    assert (config, us) == (BEST, 10)
    assert tried == len({config for config, _ in case.timed})
    assert {sparsity for _, sparsity in case.timed} == {0.5, None}
    assert set(tool.geometries("in")) <= set(case.compiled)


def test_a_lucky_measurement_does_not_win():
    """The first time that a config is measured it may seem fast; the finalists are measured again."""
    lucky = LaunchConfig(1, 16, 1, 2)
    case = MadeUpCase()
    honest, seen = case.time, set()

    def time(config, sparsity):
        first = (config, sparsity) not in seen
        seen.add((config, sparsity))
        return 1 if config == lucky and first else honest(config, sparsity)

    case.time = time
    assert lucky in tool.geometries("in")
    config, us, _ = tool.search(case, "in", 0.5, 1e9)
    assert config != lucky
    assert us == honest(config, 0.5) * (1 - tool.DENSE_SHARE) + honest(config, None) * tool.DENSE_SHARE


def test_the_search_ends_in_time_and_has_tried_the_default():
    case = MadeUpCase()
    config, _, tried = tool.search(case, "in", 0.5, 5.0, clock(1.0))
    assert 1 <= tried <= 6
    assert config in {tried_config for tried_config, _ in case.timed}
    assert tool.search(MadeUpCase(), "in", 0.5, 0.0, clock(1.0))[2] == 1


@pytest.mark.parametrize(("cost", "expected"), [(0, 0.0), (1, 0.5), (1.8, 0.9), (1.9, math.inf)])
def test_break_even(cost, expected):
    case = MadeUpCase()
    case.time_alone = lambda config, sparsity: 10 if sparsity is None else 10 + cost - 2 * sparsity
    assert tool.measure_break_even(case, BEST) == expected


def test_what_does_not_fit_is_left_out():
    config, _, _ = tool.search(MadeUpCase(lambda config: config.row_warps == 1), "in", 0.5, 1e9)
    assert config.row_warps == 1
    with pytest.raises(ZigpassError, match="no launch parameters fit 4096x4096"):
        tool.search(MadeUpCase(lambda config: False), "in", 0.5, 1e9)


@pytest.mark.parametrize("axis", ["in", "out"])
def test_candidates_fill_the_registers_of_a_multiprocessor_and_no_more(axis):
    for config in tool.geometries(axis):
        assert 8 <= config.row_warps * config.column_warps * config.blocks_per_sm <= 16
    assert len(set(tool.geometries(axis))) == len(tool.geometries(axis))


def test_shapes():
    assert tool.parse_shape("4096x14336") == (4096, 14336)
    assert tool.parse_shape("4096-14336-4096") == (4096, 14336, 4096)
    for text in ("4096", "4096x", "4096x0", "4096-14336", "4096-14336-4097", "a-b-a"):
        with pytest.raises(ZigpassError, match="is not a shape: write NxK"):
            tool.parse_shape(text)
    for shape in tool.SHAPES:
        tool.parse_shape(shape)


def test_the_command_writes_a_table(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    from zigpass.runtime.cuda import device
    from zigpass.tools import gpu_cases

    monkeypatch.setattr(gpu_cases, "require_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(device, "get_device", lambda index: device.Device(0, "a GPU", 90, 132, 227 << 10))
    case = MadeUpCase()
    monkeypatch.setattr(tool, "cases_of", lambda shape, axis, band: [case])
    path = tmp_path / "tables" / "sm_90.json"
    tool.tune(["4096x4096"], ["in"], 0.5, [1024, 0], 1e9, path)
    assert read_table(path) == (Entry(4, "in", 1, 4096, 4096, BEST, 0.5),)
    assert case.best == BEST
    assert json.loads(path.read_text())["gpu"] == "a GPU"
    out = capsys.readouterr().out
    assert "wrote 1 entries" in out
    assert "break-even 50%" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["4096"], ["in"], 0.5, [1024], 1.0, None), "is not a shape"),
        ((None, ["up"], 0.5, [1024], 1.0, None), 'scale axis "up" is neither'),
        ((None, ["in"], 0.5, [100, -128], 1.0, None), r"a band is a multiple of 128 rows.*\[100, -128\]"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ZigpassError, match=message):
        tool.tune(*arguments)


def test_without_a_gpu_it_says_so(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ZigpassError, match="measures a CUDA GPU, and torch sees none"):
        tool.tune(None, ["in"], 0.5, [1024], 1.0, None)
