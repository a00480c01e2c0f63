"""The pieces of `zigpass bench` that need no long run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from zigpass.tools import bench_cpu
from zigpass.tools.bench import bench
from zigpass.tools.bench_timing import Timing, interleave


def test_candidates_take_turns_over_all_copies() -> None:
    calls: list[tuple[str, int]] = []
    candidates = {name: lambda copy, name=name: calls.append((name, copy)) for name in ("a", "b")}
    timings = interleave(candidates, {"a": 5, "b": 3}, seconds=0.01)
    assert set(timings) == {"a", "b"}
    assert {copy for name, copy in calls if name == "a"} == set(range(5))
    assert {copy for name, copy in calls if name == "b"} == set(range(3))


def test_the_ratio_is_to_the_best_peer() -> None:
    timings = {"onnxruntime": Timing(30, 29, 31), "int4pack": Timing(40, 39, 41), "mine": Timing(10, 9, 11)}
    row = bench_cpu.table_row("8x8", "in", 0.5, timings, "mine")
    assert row["best_peer"] == "onnxruntime"
    assert row["ratio"] == 3.0
    assert row["activations"] == "float32"


def test_several_rows_are_compared_with_two_other_ways(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(bench_cpu, "SEVERAL_ROWS", (2, 40))
    for axis in bench_cpu.AXES:
        for rows, row in zip((2, 40), bench_cpu.several_rows(128, 256, axis, seconds=0.01), strict=True):
            assert (row["shape"], row["scale_axis"], row["rows"]) == ("128x256", axis, rows)
            best = min(row["pieces_us"]["median"], row["torch_us"]["median"])
            assert row["ratio"] == round(best / row["zigpass_us"]["median"], 2)


def test_a_quick_run_writes_json(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(bench_cpu, "SMALL", ((128, 256),))
    monkeypatch.setattr(bench_cpu, "MOST_COPIES", 3)
    monkeypatch.setattr(bench_cpu.os, "sched_setaffinity", lambda *_: None, raising=False)
    threads = torch.get_num_threads()
    try:
        path = tmp_path / "result.json"
        result = CliRunner().invoke(bench, ["cpu", "--small", "--seconds", "0.05", "--out", str(path)])
        assert result.exit_code == 0, result.output
    finally:
        torch.set_num_threads(threads)
    report = json.loads(path.read_text())
    assert {(row["scale_axis"], row["sparsity"]) for row in report["rows"]} == {
        (axis, sparsity) for axis in ("in", "out") for sparsity in (0.0, 0.5)
    }
    assert [row["op"] for row in report["overhead"]] == ["linear", "qkv", "gated_mlp"]
    assert "activations: zigpass float32" in " ".join(result.output.split())
    assert report["machine"]["kernels"]
    assert "cache_folder" not in report["machine"]
