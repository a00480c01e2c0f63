import json

import pytest
from typer.testing import CliRunner

from zigpass.cli import app, main
from zigpass.tools.gguf_files import write_llama


def test_env_reports_versions_as_json():
    result = CliRunner().invoke(app(), ["env", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert {"torch", "numba"} <= report["packages"].keys()
    assert {"cpu", "cores", "cuda_devices", "cache_folder", "cpu_kernels", "memory_gb"} <= report.keys()
    assert {"driver", "nvrtc", "cubins", "tables", "own tables"} == report["cuda_kernels"].keys()
    assert "sm_90" in report["cuda_kernels"]["tables"]


def test_env_names_the_variables_that_change_what_runs(monkeypatch):
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    shown = CliRunner().invoke(app(), ["env"]).stdout
    assert "ZIGPASS_CACHE_DIR=/elsewhere" in shown
    assert "hidden" not in shown


def test_env_is_readable():
    result = CliRunner().invoke(app(), ["env"])
    assert "torch_threads" in result.stdout


def test_an_input_error_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["zigpass", "demo", "--gguf", str(tmp_path / "none.gguf")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert str(caught.value) == f"error: {tmp_path / 'none.gguf'}: no such file"


def test_a_target_out_of_range_fails_before_any_work(tmp_path, monkeypatch):
    write_llama(tmp_path / "tiny.gguf")
    arguments = ["zigpass", "demo", "--gguf", str(tmp_path / "tiny.gguf"), "--target-sparsity", "1.0"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr("zigpass.tools.demo.load_gguf", None)
    with pytest.raises(SystemExit, match=r"target_sparsity must be at least 0 and below 1, got 1.0"):
        main()


def test_help_lists_the_commands():
    result = CliRunner().invoke(app(), ["--help"])
    for name in ("demo", "inspect", "inspect-kernel", "make-repro", "plot"):
        assert name in result.stdout
    assert "env" in result.stdout
