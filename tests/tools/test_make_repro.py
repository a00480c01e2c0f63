"""Repro scripts run by themselves and see what was seen in the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.models import SwiGlu, quantized_tiny_llama
from tests.toys import build
from zigpass.cli import app
from zigpass.runtime import ZigpassError
from zigpass.tools.inspect_source import ModelSource
from zigpass.tools.make_repro import repro_of

ROOT = Path(__file__).parent.parent.parent


def run(text, folder, expect=0):
    (folder / "repro.py").write_text(text)
    done = subprocess.run(
        [sys.executable, str(folder / "repro.py")], cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def toy():
    model, args = build()
    return ModelSource("toy", model, args, {})


def test_a_refusal_is_refused_again_and_not_when_its_cause_is_gone(toy, tmp_path):
    text = repro_of(toy, None)
    assert "gated_mlp refused, as in the model: leaky_relu of layers.1.gate_proj" in run(text, tmp_path)
    assert "torch.nn.functional.leaky_relu" in text
    other = run(text.replace("functional.leaky_relu", "functional.relu"), tmp_path, expect=1)
    assert "this place alone is not what it was in the model: expected gated_mlp, found []" in other


def test_a_match_of_a_llama_matches_again(tmp_path):
    torch._dynamo.reset()
    source = ModelSource("llama", quantized_tiny_llama(0.1), (torch.tensor([[5]]),), {})
    text = repro_of(source, "model.layers.1.self_attn")
    shown = run(text, tmp_path)
    assert "qkv matched, as in the model" in shown
    assert float(shown.partition("largest difference to the eager run: ")[2].split()[0]) < 1e-4


def test_float_linears_keep_their_reason(toy):
    torch._dynamo.reset()
    text = repro_of(ModelSource("float", SwiGlu(), (torch.ones(1, 64),), {}), None)
    assert "are not quantized: call zigpass.quantize_" in text
    assert "random((96, 64), torch.float32, -0.1, 0.1)" in text


def test_a_place_without_anything_lists_what_there_is(toy):
    with pytest.raises(
        ZigpassError, match=r"nothing was matched or refused at layers\.7; there is layers\.0\.gate_proj"
    ):
        repro_of(toy, "layers.7")


def test_command_writes_the_script(tmp_path, monkeypatch):
    torch._dynamo.reset()
    path = tmp_path / "repro.py"
    CliRunner().invoke(app(), ["make-repro", "tests.toys:build", "--output", str(path)], catch_exceptions=False)
    compile(path.read_text(), str(path), "exec")
    (tmp_path / "toy.onnx").write_bytes(b"")
    with pytest.raises(ZigpassError, match="a repro is made of a model"):
        CliRunner().invoke(app(), ["make-repro", str(tmp_path / "toy.onnx")], catch_exceptions=False)
