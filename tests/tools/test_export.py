"""`zigpass export` and `zigpass import-onnx`."""

import onnx
import pytest
from typer.testing import CliRunner

from tests.zigpass.onnx.test_import_onnx import mlp
from zigpass.cli import app, main


def test_export_writes_a_model_and_says_what(folder, tmp_path):
    path = tmp_path / "out" / "model.onnx"
    result = CliRunner().invoke(
        app(), ["export", str(folder), "--output", str(path), "--bits", "4", "--group-size", "32"]
    )
    assert result.exit_code == 0, result.output
    for part in ("14 packed linears", "8 sites", "opset 21", "2 GatedMlpSilu4SubInt", "8 Linear4SubInt"):
        assert part in result.output
    assert {each.name for each in path.parent.iterdir()} >= {"model.onnx", "genai_config.json", "tokenizer.json"}
    onnx.checker.check_model(str(path), full_check=True)


def test_import_says_what_it_found(tmp_path):
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(mlp(), source)
    command = ["import-onnx", str(source), str(target), "--threshold", "0.1"]
    result = CliRunner().invoke(app(), command, env={"COLUMNS": "400"})  # wide enough for the path of any machine
    assert result.exit_code == 0, result.output
    for part in ("1 MLPs, 2 sites, of 3 MatMulNBits nodes", "opset 21", "1 GatedMlpSilu4NBitsZero", "target.onnx"):
        assert part in result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export", "--opset", "18"], "opset 18 is not supported"),
        (["export", "--output", "model.txt"], r"must end with \.onnx"),
        (["import-onnx", "none.onnx", "m.onnx"], r"none\.onnx: no such file"),
        (["import-onnx", "a.onnx", "b.onnx", "--threshold", "1", "--thresholds", "t"], "give one of them"),
    ],
)
def test_wrong_options_fail_before_any_work(monkeypatch, tmp_path, arguments, reason):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["zigpass", *arguments])
    monkeypatch.setattr("zigpass.tools.export.load_model", None)
    with pytest.raises(SystemExit, match=f"error: .*{reason}"):
        main()
