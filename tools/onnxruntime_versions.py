"""The ONNX tests on the oldest supported onnxruntime and on the newest: `python -m zigpass.tools.onnxruntime_versions`.

Each version is installed into a folder of its own, which comes before the installed packages; nothing else changes.
Runs in a checkout, where the tests are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from zigpass.cli import run_script
from zigpass.runtime import ZigpassError

OLDEST: Final = "1.20.*"
NEWEST: Final = "newest"
ROOT: Final = Path(__file__).resolve().parent.parent
TESTS: Final = ("tests/zigpass/onnx", "tests/zigpass/ort")


def onnxruntime_versions(
    version: Annotated[list[str] | None, typer.Option(help="Such as 1.22.*; several times.")] = None,
    arguments: Annotated[str, typer.Option(help="Further arguments of pytest.")] = "-q",
) -> None:
    """Run the ONNX tests on several versions of onnxruntime."""
    if not all((ROOT / folder).is_dir() for folder in TESTS):
        raise ZigpassError(f"{ROOT} has no tests; run this in a checkout of zigpass")
    results = {}
    for wanted in version or [OLDEST, NEWEST]:
        with tempfile.TemporaryDirectory() as folder:
            results[_install(wanted, folder)] = _run(folder, arguments.split())
    table = Table("onnxruntime", "tests")
    for name, code in results.items():
        table.add_row(name, "passed" if code == 0 else f"failed ({code})")
    Console().print(table)
    if any(results.values()):
        raise SystemExit(1)


def _install(wanted: str, folder: str) -> str:
    """Install a version into a folder; the version that it is."""
    package = "onnxruntime" if wanted == NEWEST else f"onnxruntime=={wanted}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, package]
    if subprocess.run(command, check=False).returncode:
        raise ZigpassError(f"pip cannot install {package} for Python {sys.version.split()[0]}")
    code = "import onnxruntime; print(onnxruntime.__version__)"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=_environment(folder)).stdout.strip()


def _run(folder: str, arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pytest", *TESTS, *arguments]
    return subprocess.run(command, check=False, cwd=ROOT, env=_environment(folder)).returncode


def _environment(folder: str) -> dict[str, str]:
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    run_script(onnxruntime_versions)
