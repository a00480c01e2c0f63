"""The small library that registers ops in domain "zigpass": compiled once with the machine's C compiler and kept."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from zigpass.runtime import ZigpassError
from zigpass.runtime.cache_root import cache_root

from .custom_ops import OpTable

SOURCE: Final = Path(__file__).parent / "register_ops.c"
_LIBRARY: Final = "libzigpass_ort.dylib" if sys.platform == "darwin" else "libzigpass_ort.so"


def compiler() -> list[str] | None:
    """The command of a C compiler: `$CC`, or cc, gcc or clang; None when there is none."""
    given = shlex.split(os.environ.get("CC", ""))
    candidates = [given] if given else [["cc"], ["gcc"], ["clang"]]
    return next((command for command in candidates if shutil.which(command[0])), None)


@functools.cache
def shim_library() -> Path:
    """The library, with the op table set.

    Raises:
        ZigpassError: there is no C compiler, or it fails.
    """
    path = _built()
    library = ctypes.CDLL(str(path))
    table = OpTable()
    library.zigpass_set_ops.argtypes = [ctypes.c_void_p, ctypes.c_long]
    library.zigpass_set_ops.restype = None
    library.zigpass_set_ops(table.pointers, len(table.names))
    return path


def _built() -> Path:
    key = hashlib.sha256(SOURCE.read_bytes() + platform.machine().encode()).hexdigest()[:16]
    path = cache_root() / "ort" / key / _LIBRARY
    if path.is_file():
        return path
    command = compiler()
    if command is None:
        raise ZigpassError("there is no C compiler (cc, gcc or clang, or the one that CC names)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / _LIBRARY
            command = [*command, "-shared", "-fPIC", "-O2", "-o", str(built), str(SOURCE)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise ZigpassError(f"{' '.join(command)} failed:\n{result.stderr.strip()[-1000:]}")
            built.replace(path)  # whole or not there, also for a process beside this one
            with contextlib.suppress(OSError):
                path.chmod(0o755)
    except OSError as error:
        raise ZigpassError(f"{path}: cannot be built ({error}); ZIGPASS_CACHE_DIR names another folder") from error
    return path
