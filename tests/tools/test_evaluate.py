"""`zigpass evaluate` and `zigpass calibrate` on a tiny model in a Hugging Face folder."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.models import WORDS, quantized_tiny_llama, random_tokens
from zigpass.cli import app
from zigpass.load_packed import from_pretrained
from zigpass.runtime import ZigpassError
from zigpass.save import save_pretrained
from zigpass.sites import find_sites
from zigpass.thresholds import Thresholds
from zigpass.tools.load_model import load_model
from zigpass.tools.measure_quality import Measurement, lead, measure_quality

WIDE = {"COLUMNS": "200"}  # so that the tables are not wrapped


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(" ".join(WORDS[token] for token in random_tokens(6000).tolist()), encoding="utf-8")
    return path


def invoke(*arguments):
    return CliRunner().invoke(app(), [str(argument) for argument in arguments], catch_exceptions=False, env=WIDE)


def test_evaluate_prints_writes_and_draws(folder, text, tmp_path):
    pytest.importorskip("matplotlib")
    json_file, plot = tmp_path / "out" / "quality.json", tmp_path / "out" / "quality.png"
    result = invoke(
        "evaluate", folder, "--bits", 4, "--group-size", 32, "--text", text, "--calibration", text, "--windows", 2,
        "--window", 64, "--sparsity", 0.3, "--sparsity", 0.6, "--json", json_file, "--plot", plot,
    )  # fmt: skip
    assert result.exit_code == 0
    assert "bytes read" in result.output
    measurement = Measurement.load(json_file)
    assert [(row.allocation, row.target) for row in measurement.rows] == [
        (allocation, target) for allocation in ("measured", "uniform") for target in (0.3, 0.6)
    ]
    assert all(0 < row.kl < 1 and row.bytes_read < measurement.dense_bytes for row in measurement.rows)
    assert all(row.realized == pytest.approx(row.target, abs=0.05) for row in measurement.rows)
    assert "cache_folder" not in measurement.machine
    assert str(tmp_path) not in json_file.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_calibrate_writes_thresholds_that_fit(folder, text, tmp_path):
    output = tmp_path / "found.safetensors"
    options = ("--bits", 4, "--group-size", 32, "--calibration", text)
    result = invoke("calibrate", folder, *options, "--sparsity", 0.4, "--sites", "mlp_in", "--output", output)
    assert result.exit_code == 0
    thresholds = Thresholds.load(output)
    assert thresholds.allocation in ("measured", "uniform")
    model = quantized_tiny_llama()
    thresholds.apply(model)
    assert {site.kind for site in find_sites(model).values() if float(site.threshold) > 0} == {"mlp_in"}


def measured_sites(state):
    """Names of the sites that a state file has a measurement of."""
    lines = [json.loads(line) for line in state.read_text().splitlines()[1:]]
    return [name for stage, name, _ in lines if stage == "measured magnitude"]


def test_calibrate_goes_on_after_ctrl_c(folder, text, tmp_path, decode_runs):
    output, state = tmp_path / "found.safetensors", tmp_path / "found.safetensors.state"
    arguments = ("calibrate", folder, "--bits", 4, "--group-size", 32, "--calibration", text, "--output", output)
    decode_runs.interrupt_at = 5
    result = invoke(*arguments)
    assert result.exit_code != 0
    assert "keeps what was measured" in result.output
    assert len(measured_sites(state)) == 5
    assert not output.exists()
    assert invoke(*arguments).exit_code == 0
    assert sum(start is not None for start in decode_runs) == 8  # every site was measured once
    assert output.exists()
    assert not state.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_a_real_interrupt_keeps_what_was_measured(folder, text, tmp_path):
    output = tmp_path / "found.safetensors"
    state = Path(f"{output}.state")
    arguments = ["--bits", "4", "--group-size", "32", "--calibration", text, "--output", output]
    command = [sys.executable, "-m", "zigpass.tools.calibrate", folder, *arguments]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | WIDE,
        # Shells start jobs in the background with the interrupt ignored, and what they start inherits that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while not state.exists() and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 130  # as shells count it: 128 + SIGINT
    assert f"{state} keeps what was measured" in said
    assert not output.exists()
    assert measured_sites(state)
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | WIDE)
    assert "allocation" in again.stdout
    assert output.exists()
    assert not state.exists()


def test_calibrate_writes_counts(folder, text, tmp_path):
    output = tmp_path / "found.safetensors"
    options = ("--bits", 4, "--group-size", 32, "--calibration", text, "--allocation", "uniform")
    result = invoke("calibrate", folder, *options, "--sparsity", 0.25, "--selection", "top_k", "--output", output)
    assert result.exit_code == 0
    model = quantized_tiny_llama()
    Thresholds.load(output).apply(model)
    assert {int(site.threshold) for site in find_sites(model).values()} == {48, 72}  # of 64 and 96 entries
    save_pretrained(model, tmp_path / "saved")
    again = find_sites(from_pretrained(tmp_path / "saved"))
    assert all(torch.equal(again[name].threshold, site.threshold) for name, site in find_sites(model).items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.5"], "target_sparsity must be at least 0 and below 1"),
        (["--rule", "wina"], "rule must be one of"),
        (["--allocation", "best"], "allocation must be one of"),
        (["--text", "some.txt"], "--text and --calibration go together"),
    ],
)
def test_unusable_options_fail_before_anything_is_loaded(monkeypatch, arguments, message):
    monkeypatch.setattr("zigpass.tools.evaluate.load_model", None)
    with pytest.raises(ZigpassError, match=message):
        invoke("evaluate", "nowhere", *arguments)


def test_models_that_cannot_be_loaded(folder, tmp_path):
    with pytest.raises(ZigpassError, match="a float model; say how to quantize it"):
        load_model(folder)
    with pytest.raises(ZigpassError, match=r"none: no such file or folder"):
        load_model(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZigpassError, match=r"empty: neither a GGUF file nor a folder with a config.json"):
        load_model(tmp_path / "empty")


def test_a_model_in_the_hub_cache_goes_by_its_id(folder, text, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(folder, cached / "snapshots" / "0123abcd")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    result = invoke(
        "evaluate", "owner/tiny", "--bits", 4, "--group-size", 32, "--text", text, "--calibration", text,
        "--windows", 2, "--window", 64, "--sparsity", 0.3, "--allocation", "uniform",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "tiny" in result.output
    with pytest.raises(ZigpassError, match=r"owner/other: .* no model of this id in the local hub cache; fetch it"):
        load_model(Path("owner/other"))


def test_lm_eval_gets_the_sparse_model(monkeypatch):
    seen = []

    class FakeModel:
        def __init__(self, pretrained, tokenizer):
            self.pretrained = pretrained

    def simple_evaluate(model, tasks):
        sites = find_sites(model.pretrained).values()
        seen.append([(site.mask_rows, float(site.threshold) > 0) for site in sites])
        return {"results": {task: {"acc,none": 0.25, "alias": task} for task in tasks}}

    package, models, huggingface = (types.ModuleType(name) for name in ("lm_eval", "lm_eval.models", "x"))
    package.simple_evaluate, huggingface.HFLM = simple_evaluate, FakeModel
    package.__spec__ = types.SimpleNamespace()
    for name, module in {"": package, ".models": models, ".models.huggingface": huggingface}.items():
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)
    model = quantized_tiny_llama()
    found = measure(model, [0.5], [("magnitude", "uniform")], lm_eval=("tokenizer", ["arc"]))
    assert found.rows[0].lm_eval == {"arc": {"acc,none": 0.25}}
    assert seen == [[(True, True)] * 8]
    assert all(float(site.threshold) == 0 for site in find_sites(model).values())


def test_missing_lm_eval_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ZigpassError, match="pip install lm-eval"):
        measure(quantized_tiny_llama(), [0.5], [("magnitude", "uniform")], lm_eval=("tokenizer", ["arc"]))


def measure(model, targets, combinations, **kwargs):
    return measure_quality(
        model,
        random_tokens(1000),
        random_tokens(500, seed=1),
        names=("tiny", "random", "other"),
        targets=targets,
        combinations=combinations,
        window=64,
        num_windows=3,
        progress=False,
        **kwargs,
    )


def test_rows_are_compared_window_by_window(tmp_path):
    rules = ("magnitude", "column_norm", "top_k")
    found = measure(quantized_tiny_llama(), [0.3, 0.6], [(rule, "uniform") for rule in rules])
    low, high, *_ = found.rows
    mean, error = lead(low, high)
    assert mean == pytest.approx(high.kl - low.kl)
    differences = torch.tensor(high.window_kls) - torch.tensor(low.window_kls)
    assert error == pytest.approx(float(differences.std() / 3**0.5))
    assert [row.rule for row in found.rows] == [rule for rule in rules for _ in range(2)]
    assert all(row.worst_site < 0.01 for row in found.rows if row.rule == "top_k")  # one entry of 64 or 96
    found.save(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["rows"][0]["target"] == 0.3
    assert Measurement.load(tmp_path / "found.json") == found
