"""What a compile leaves behind: log lines by TORCH_LOGS, artifacts for tlparse."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.passes.graphs import capture
from tests.toys import build
from zigpass.inductor_pass import ZigzagPass

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import torch
from tests.passes.graphs import capture
from tests.toys import build
model, args = build()
with torch.inference_mode():
    torch.compile(model, backend="zigpass", options={"inner": "eager"})(*args)
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the script logs, and the trace that torch wrote."""

    log: str
    trace: Path


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script in a process of its own: torch reads its settings when it is imported."""
    folder = tmp_path_factory.mktemp("trace")
    settings = {"PYTHONPATH": str(ROOT), "TORCH_LOGS": "+zigpass", "TORCH_TRACE": str(folder)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True, text=True)
    (trace,) = folder.iterdir()
    return Run(done.stderr, trace)


def test_torch_logs_shows_passes_near_misses_and_differences(script):
    assert "fuse_gated_mlp: 1 in " in script.log
    assert "near miss (gated_mlp): leaky_relu of layers.1.gate_proj is not an activation" in script.log
    assert "+gated_mlp: f32[1, 1, 64] = zigpass.gated_mlp(" in script.log
    line = "matched 1 gated_mlp, 1 qkv, 1 linear; 4 sites; 0.03 MB packed weights; passes "
    assert script.log.count(line) == 1


def test_tlparse_shows_the_artifacts(script, tmp_path):
    tlparse = shutil.which("tlparse") or shutil.which("tlparse", path=str(Path(sys.executable).parent))
    if tlparse is None:
        pytest.skip("tlparse is not installed")
    command = [tlparse, str(script.trace), "-o", str(tmp_path / "out"), "--no-browser"]
    subprocess.run(command, check=True, capture_output=True)
    found = {path.name.rpartition("_")[0]: path for path in (tmp_path / "out").rglob("zigpass_*")}
    assert found.keys() == {
        "zigpass_graph_before", "zigpass_graph_after", "zigpass_fuse_gated_mlp_diff", "zigpass_fuse_qkv_diff",
        "zigpass_report",
    }  # fmt: skip
    report = json.loads(found["zigpass_report"].read_text())
    assert report["kinds"] == {"gated_mlp": 1, "qkv": 1, "linear": 1}
    assert report["near_misses"][0]["reason"].startswith("leaky_relu")
    assert "zigpass.gated_mlp(" in found["zigpass_graph_after"].read_text()
    assert "zigpass.gated_mlp(" not in found["zigpass_graph_before"].read_text()


def test_one_line_where_nobody_listens_to_details(caplog):
    model, args = build()
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"), torch.inference_mode():
        torch.compile(model, backend="zigpass", options={"inner": "eager"})(*args)
    assert [record.levelname for record in caplog.records if record.name == "zigpass.compile_log"] == ["INFO"]


def test_the_inductor_hook_logs_the_same_line(caplog):
    model, args = build()
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"), torch.no_grad():
        ZigzagPass()(capture(model, *args).graph)
    (record,) = [record for record in caplog.records if record.name == "zigpass.compile_log"]
    assert record.getMessage().startswith("matched 1 gated_mlp, 1 qkv, 1 linear; 4 sites; 0.03 MB packed weights")


def test_packages_below_zigpass_can_be_listed():
    """torch does, for TORCH_LOGS; in a checkout the folder lies below itself, and listing it must end."""
    code = "import pkgutil, zigpass; print(sum(1 for _ in pkgutil.walk_packages(zigpass.__path__, 'zigpass.')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) < 1000
