"""Running out of a GPU's memory, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from .errors import ZigpassError


@contextlib.contextmanager
def naming_out_of_memory(what: str, way_out: str) -> Iterator[None]:
    """Raise `ZigpassError` where the block runs out of memory: "`what` ran out of memory", the numbers, `way_out`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # torch's text has the numbers in its first sentences and advice on its allocator in the others.
        numbers = str(error).split(" Of the allocated memory")[0].split(" See documentation")[0].rstrip(". ")
        raise ZigpassError(f"{what} ran out of memory ({numbers}); {way_out}") from error
