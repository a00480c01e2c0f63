"""One way to show progress: a bar with count and time left, on standard error, silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def track(items: Iterable[T], description: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Yield the items while a progress bar follows.

    Args:
        total: number of items; taken from `items` when it has a length.
        show: False for no bar. There is none either when standard error is not a terminal.
    """
    if not show or not sys.stderr.isatty():
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    with _bar() as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def counting(total: int, description: str, *, show: bool = True) -> Iterator[Callable[[], None]]:
    """A bar for work that somebody else loops over: gives a function to call once for each of `total` items."""
    if not show or not sys.stderr.isatty():
        yield lambda: None
        return
    with _bar() as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def working(description: str, *, show: bool = True) -> Iterator[None]:
    """A spinner for one long step."""
    if not show or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(description):
        yield


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=False)
