"""Machine code of a kernel, and what its innermost loop costs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zigpass.runtime import ZigpassError

PROGRAM = "nvdisasm"
_INSTRUCTION = re.compile(r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>.*?);")
_LABEL = re.compile(r"^(?P<label>\.L_x_\d+):")
_BRANCH = re.compile(r"\bBRA\b.*?`\((?P<label>\.L_x_\d+)\)")
PRODUCT = "HMMA"
"""The tensor-core instruction that the kernels multiply with."""


def disassemble(cubin: bytes, kernel: str, required: bool) -> str | None:
    """The listing of one kernel of a cubin; None when there is no disassembler.

    Raises:
        ZigpassError: `required`, and there is none.
    """
    program = find_program()
    if program is None:
        if required:
            raise ZigpassError(
                f"{PROGRAM} is not installed: pip install nvidia-cuda-nvdisasm, or put a CUDA toolkit's bin on the PATH"
            )
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([program, "-c", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ZigpassError(f"{program} failed: {done.stderr.strip()}")
    return section(done.stdout, kernel)


def find_program() -> str | None:
    """nvdisasm on the PATH, in $CUDA_HOME, in NVIDIA's Python packages or in triton's."""
    found = shutil.which(PROGRAM)
    return found or next((str(path) for path in _places() if path.is_file()), None)


def _places() -> Iterator[Path]:
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home) / "bin" / PROGRAM
    yield Path(sys.prefix) / "bin" / PROGRAM  # where a package's script goes when the environment is not activated
    for package, pattern in (("nvidia", f"*/bin/{PROGRAM}"), ("triton", f"backends/nvidia/bin/{PROGRAM}")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            yield from sorted(Path(folder).glob(pattern))


def section(listing: str, kernel: str) -> str:
    """The part of a listing that belongs to one kernel."""
    parts = re.split(r"^//-+ \.text\.(\w+)\s+-+$", listing, flags=re.MULTILINE)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        if name == kernel:
            return text.split("//--------------------- .", 1)[0].strip("\n")
    raise ZigpassError(f"no code of {kernel} in the cubin")


def hot_loop(listing: str, products_per_step: int) -> float | None:
    """Instructions of one step in the smallest loop that holds the most tensor-core products, each counted once.

    Args:
        products_per_step: such products in a step; a loop holds one step or several.

    Returns:
        None where no loop holds a whole step.
    """
    instructions, labels = parse(listing)
    best: tuple[int, int] | None = None
    for index, text in enumerate(instructions):
        branch = _BRANCH.search(text)
        start = labels.get(branch["label"]) if branch else None
        if start is not None and start <= index:
            products = sum(PRODUCT in one for one in instructions[start : index + 1])
            length = index + 1 - start
            if best is None or (products, -length) > (best[0], -best[1]):
                best = products, length
    steps = best[0] // products_per_step if best else 0
    return best[1] / steps if best and steps else None


def parse(listing: str) -> tuple[list[str], dict[str, int]]:
    """The instructions in order, without padding, and at which of them each label stands."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label["label"]] = len(instructions)
        elif (found := _INSTRUCTION.search(line)) and found["text"].strip() != "NOP":
            instructions.append(found["text"].strip())
    return instructions, labels
