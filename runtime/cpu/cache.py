"""Compiled kernels on disk.

Each kernel is one file in `<cache>/numba/<key>/`, where `<cache>` is `$ZIGPASS_CACHE_DIR` or the user's cache folder
and `<key>` hashes everything the machine code depends on: the sources of this package, the versions of Numba, llvmlite
and Python, and the features of the CPU. (Numba's own cache looks only at the file that a function is written in and
misses edits in the modules it calls.) A file starts with the hash of its content, so a damaged one is never loaded.
Nothing that goes wrong here stops a run: the kernel is compiled in memory and one warning names the folder and the way
out.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import platform
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import compiler, serialize

from ..cache_root import CACHE_DIR_VARIABLE, cache_root

FOLDERS_KEPT = 4
"""Folders of kernels that stay when a new one appears: other versions and other CPUs that share a home folder."""
_DIGEST_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger("zigpass.runtime.cpu")


class KernelCache:
    """The disk cache of one Numba dispatcher; takes the place of Numba's own cache object.

    Args:
        name: of the kernel; with the signature it names the file.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._compile_start: float | None = None

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel for a signature, or None when it has to be compiled."""
        target_context.refresh()
        path = self._path(signature, target_context.codegen().magic_tuple())
        try:
            content = path.read_bytes()
            mark_used(path.parent)
            digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("the file is damaged")
            return compiler.CompileResult._rebuild(target_context, *pickle.loads(payload))
        except FileNotFoundError:
            pass
        except Exception as error:  # a cache must never break a run, whatever state it is in
            warn_once(path.parent, f"cannot read {path.name}: {error}")
        logger.info("compiling kernel %s (once; kept in %s)", self.name, path.parent)
        self._compile_start = time.perf_counter()
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a freshly compiled kernel."""
        if self._compile_start is not None:
            logger.info("compiled kernel %s in %.1f s", self.name, time.perf_counter() - self._compile_start)
        path = self._path(signature, result.library.codegen.magic_tuple())
        try:
            payload = serialize.dumps(result._reduce())
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Written aside and moved, so that another process never reads half a file.
            aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
            try:
                aside.write_bytes(hashlib.sha256(payload).digest() + payload)
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
            prune(path.parent)
        except Exception as error:
            warn_once(path.parent, f"cannot write {path.name}: {error}")

    def _path(self, signature: Any, cpu: tuple[Any, ...]) -> Path:
        key = hashlib.sha256(repr(signature).encode()).hexdigest()[:12]
        return cache_folder(cpu) / f"{self.name}-{key}.bin"


def cache_folder(cpu: tuple[Any, ...]) -> Path:
    """Where kernels for a CPU (target triple, name, features) are kept."""
    parts = (SOURCE_HASH, numba.__version__, llvmlite.__version__, sys.version, platform.machine(), repr(cpu))
    return cache_root() / "numba" / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


@functools.cache
def mark_used(folder: Path) -> None:
    """Note, once a process, that a folder of kernels is in use, so that `prune` keeps it."""
    with contextlib.suppress(OSError):  # a folder that cannot be written is never pruned either
        os.utime(folder)


def prune(folder: Path) -> None:
    """Delete the folders beside a folder of kernels that were used least recently, all but the newest few."""
    others = [path for path in folder.parent.iterdir() if path != folder and len(path.name) == len(folder.name)]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[FOLDERS_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def _hash_sources() -> str:
    """Hash of the sources that compiled kernels are made of: this package and the layout's constants."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (*sorted(here.glob("*.py")), here.parent / "layout.py"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


SOURCE_HASH = _hash_sources()
"""Taken while the package is imported: what is compiled is what was imported, also when a file is edited afterwards."""


@functools.cache
def _warn(folder: Path) -> list[str]:
    return []


def warn_once(folder: Path, problem: str) -> None:
    """Warn about an unusable cache folder; later problems with the same folder are logged at DEBUG."""
    seen = _warn(folder)
    logger.log(
        logging.DEBUG if seen else logging.WARNING,
        "the kernel cache in %s is not usable (%s); kernels are compiled in memory, which takes seconds at every start."
        " Set %s to a writable folder, or delete this one if it is damaged",
        folder,
        problem,
        CACHE_DIR_VARIABLE,
    )
    seen.append(problem)
