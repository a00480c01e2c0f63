"""What a result file says about where its numbers come from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from zigpass.tools.env import environment


def provenance() -> dict[str, Any]:
    """Machine, versions and commit, without what belongs to one user."""
    report = environment()
    report.pop("cache_folder", None)
    kernels = {name: value for name, value in report.pop("cuda_kernels", {}).items() if name in ("driver", "nvrtc")}
    return {**report, **kernels, "commit": commit()}


def commit() -> str:
    """The commit of the checkout, "-dirty" when it was changed since; ZIGPASS_COMMIT where a copy has no repository."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        found = ""
    return found or os.environ.get("ZIGPASS_COMMIT") or "unknown"
