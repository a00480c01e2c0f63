"""Huge pages under packed weights.

A sparse product reads short pieces of a large matrix here and there, and with pages of 4 KB a good part of its time
goes into translating addresses. 11008x4096, 50 % active, one thread, in a virtual machine: 1.33 ms with pages of 4 KB,
1.16 with pages of 2 MB; 4096x11008 1.06 and 0.98.

Most Linux systems give huge pages only to memory that asks for them. So the ops ask, once per weight, for the pages of
every packed tensor: Linux 6.1 and newer move the data at once (`MADV_COLLAPSE`, a page at a
time, so no second copy exists), older ones in the background (`MADV_HUGEPAGE`). Contents and addresses stay. A refusal,
as for mapped files, is no error: the weight works in the pages that it has. `$ZIGPASS_HUGE_PAGES=0` turns it off.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

logger = logging.getLogger("zigpass.runtime.cpu")

HUGE_PAGES_VARIABLE: Final = "ZIGPASS_HUGE_PAGES"
LEAST_BYTES: Final = 1 << 18
"""Tensors of fewer bytes are left where they are."""
_PAGE_SIZE_FILE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
# Of <linux/mman.h>; Python's mmap module does not name the second.
MADV_HUGEPAGE: Final = 14
MADV_COLLAPSE: Final = 25


def ask_for_huge_pages(tensors: Sequence[Tensor]) -> int:
    """Ask the kernel to back tensors with huge pages.

    Returns:
        The bytes for which it agreed, without the ends that share a page with other memory; 0 where the tensors are
        small, the kernel cannot, or it is turned off.
    """
    advice = usable_advice()
    if advice is None or is_turned_off():
        return 0
    size, agreed, wanted = huge_page_size(), 0, 0
    for tensor in tensors:
        first = tensor.data_ptr()
        end = first + tensor.numel() * tensor.element_size()
        start, stop = -(-first // size) * size, end // size * size
        if start < stop:
            wanted += stop - start
            agreed += stop - start if _madvise(start, stop - start, advice) else 0
        if advice == MADV_COLLAPSE and end - first >= LEAST_BYTES:
            # The ends share their pages with whatever lies beside them; the kernel refuses where nothing does.
            for page in {first // size * size, (end - 1) // size * size}:
                _madvise(page, size, advice)
    if wanted:
        _report(agreed == wanted, advice)
    return agreed


def is_turned_off() -> bool:
    """Whether `$ZIGPASS_HUGE_PAGES` says so."""
    return os.environ.get(HUGE_PAGES_VARIABLE, "").lower() in ("0", "off", "false")


def describe() -> str:
    """What happens to packed weights on this system, for `zigpass env`."""
    if is_turned_off():
        return f"off ({HUGE_PAGES_VARIABLE})"
    return {MADV_COLLAPSE: "at once", MADV_HUGEPAGE: "in the background", None: "not available"}[usable_advice()]


@functools.cache
def huge_page_size() -> int:
    """Bytes of a huge page; 0 where the kernel has none."""
    try:
        return int(_PAGE_SIZE_FILE.read_text())
    except (OSError, ValueError):
        return 0


@functools.cache
def usable_advice() -> int | None:
    """`MADV_COLLAPSE` where the kernel knows it, else `MADV_HUGEPAGE`, else None; found out on a page of its own."""
    size = huge_page_size()
    if sys.platform != "linux" or not size:
        return None
    with mmap.mmap(-1, 2 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        region[0] = region[size] = 1  # memory that was never written has nothing to move, which is an error too
        for advice in (MADV_COLLAPSE, MADV_HUGEPAGE):
            try:
                region.madvise(advice)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOSYS):
                    continue
            return advice
    return None


def _madvise(address: int, length: int, advice: int) -> bool:
    function: Any = ctypes.CDLL(None).madvise
    return bool(function(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_int(advice)) == 0)


@functools.cache
def _report(agreed: bool, advice: int) -> None:
    """Say once each that it worked and that it did not."""
    if agreed:
        how = "" if advice == MADV_COLLAPSE else "; the kernel moves them in the background"
        logger.info("packed weights are backed by huge pages%s", how)
    else:
        logger.info("the kernel refused huge pages for a packed weight, which makes large ones slower by about a tenth")
