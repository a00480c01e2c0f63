"""The decode benchmark on a small shape, its timing with events of a GPU left out."""

import json

import pytest
import torch
from typer.testing import CliRunner

from zigpass.runtime import ZigpassError
from zigpass.tools import bench_decode
from zigpass.tools.bench import bench
from zigpass.tools.decode_models import Shape, build, make_bfloat16, zigzag_maker
from zigpass.tools.profile_step import part_of, profile_step

SHAPE = Shape("llama", hidden=256, middle=384, layers=2, heads=2, kv_heads=1, vocabulary=301)


@pytest.fixture(autouse=True)
def short_depth(monkeypatch):
    monkeypatch.setattr(bench_decode, "DEPTH", 16)
    monkeypatch.setattr(bench_decode, "CACHE_LENGTH", 16 + bench_decode.REPLAYS + 16)
    torch._dynamo.reset()


def test_activations_stay_in_range():
    model = build(SHAPE, zigzag_maker(sparse=True), "cpu")
    with torch.inference_mode():
        logits = model(torch.arange(20)[None]).logits.float()
    assert 0.1 < logits.std() < 3
    assert logits.isfinite().all()


def test_thresholds_meet_the_target_and_leave_the_head_dense():
    model = build(SHAPE, zigzag_maker(sparse=True), "cpu")
    step = bench_decode.DecodeBench(model, "zigpass")
    realized = step.set_sparsity(0.5)
    assert len(realized) == 8
    assert step.total(realized) == pytest.approx(0.5, abs=0.05)
    assert model.lm_head.site is None
    assert all(layer.cumulative_length == 16 for layer in step.cache.layers)
    assert step.total(step.set_sparsity(0.0)) == 0


@pytest.mark.parametrize("make", [make_bfloat16, zigzag_maker(sparse=False)])
def test_a_dense_variant_steps(make):
    backend = "eager" if make is make_bfloat16 else "zigpass"  # Inductor takes half a minute here, and is not ours
    step = bench_decode.DecodeBench(build(SHAPE, make, "cpu"), backend)
    step.replay()
    assert all(layer.cumulative_length == 17 for layer in step.cache.layers)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ZigpassError) as raised:
        bench_decode.run(["llama-4"], [1.0], ["gptq"], "sdpa", False, None)
    for part in ("unknown model 'llama-4'", "a sparsity is in [0, 1), got 1.0", "unknown variant 'gptq'"):
        assert part in str(raised.value)


def test_a_file_keeps_the_rows_of_other_models_of_the_same_machine(tmp_path, monkeypatch):
    machine = {"cuda_devices": ["H100"], "packages": {"torch": "2.11"}, "commit": "1a2b3c4"}
    monkeypatch.setattr(bench_decode, "provenance", lambda: machine)
    path = tmp_path / "decode.json"
    assert bench_decode.earlier_report(path, ["a"]) == {"rows": [], "shapes": {}}
    rows = [{"model": "a"}, {"model": "b"}]
    path.write_text(json.dumps({"environment": machine, "shapes": {"a": {}, "b": {"heads": 2}}, "rows": rows}))
    expected = {"rows": [{"model": "b"}], "shapes": {"b": {"heads": 2}}}
    assert bench_decode.earlier_report(path, ["a", "c"]) == expected
    monkeypatch.setattr(bench_decode, "provenance", lambda: {**machine, "commit": "9f8e7d6"})
    with pytest.raises(ZigpassError, match=r"has rows of H100, torch 2.11, 1a2b3c4, this is H100, torch 2.11, 9f8e7d6"):
        bench_decode.earlier_report(path, ["c"])


@pytest.mark.cuda
def test_the_command_writes_json(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_decode.SHAPES, "llama-3-8b", SHAPE)
    path = tmp_path / "decode.json"
    command = ["decode", "llama-3-8b", "--sparsity", "0.5", "--variant", "bf16", "--out", str(path)]
    result = CliRunner().invoke(bench, command, catch_exceptions=False)
    assert result.exit_code == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["bf16", "zigpass 50%"]
    assert abs(rows[1]["realized_sparsity"] - 0.5) < 0.1
    assert rows[1]["parts"]["kernels"] > 10


@pytest.mark.cuda
def test_nothing_runs_between_the_kernels_of_an_op():
    """No copy, fill, cast or index kernel: what is not zigpass's or attention is what Inductor made of the model."""
    bench = bench_decode.DecodeBench(build(SHAPE, zigzag_maker(sparse=True)), "zigpass")
    names = [launch.name for launch in profile_step(bench.replay).layer]
    assert {part_of(name) for name in names} == {"attention", "linears", "other"}
    assert all(name.startswith("triton_") for name in names if part_of(name) == "other")
    pieces = " ".join(name if name.startswith("zigzag") else "." for name in names).split(".")
    ops = [piece.strip() for piece in pieces if piece.strip()]
    assert ops == ["zigzag_gemv zigzag_combine", "zigzag_gemv zigzag_gemv zigzag_combine", "zigzag_gemv zigzag_combine"]
