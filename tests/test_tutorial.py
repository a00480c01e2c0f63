"""The tutorial's commands, run as a reader would, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from typer.testing import CliRunner

from zigpass.cli import app

TUTORIAL = (Path(__file__).parent.parent / "docs" / "tutorial-unmatched.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TUTORIAL, flags=re.DOTALL | re.MULTILINE)


def test_three_commands_lead_from_the_model_to_the_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    torch._dynamo.reset()
    (source,) = blocks(r"python toy\.py")
    Path("toy.py").write_text(source)
    commands = [line.removeprefix("$ zigpass ") for text in blocks("console") for line in text.splitlines()]
    assert len(commands) == 3
    outputs = [CliRunner().invoke(app(), shlex.split(command), catch_exceptions=False).stdout for command in commands]
    for output, expected in zip(outputs, blocks("output"), strict=False):
        for line in expected.splitlines():
            assert line in output
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "repro.py"], capture_output=True, text=True, check=True, env=environment)
    (expected,) = blocks("repro")
    assert expected.strip() in done.stdout
