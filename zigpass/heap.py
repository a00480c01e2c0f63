"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import os


def trim_heap() -> None:
    """Return what the C library keeps of freed tensors, where it can (glibc).

    Runs over many tokens free tensors of many sizes, which stay in its heap in pieces too small for the next run: on
    SmolLM2, 24 windows side by side, every placement of thresholds added 0.35 GB to the process, 12.6 GB in the end, of
    which 1.2 GB were in use.
    """
    if os.name == "posix":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
