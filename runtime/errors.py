"""The one exception type zigpass raises for input it cannot work with."""

from __future__ import annotations

from collections.abc import Iterable


class ZigpassError(ValueError):
    """Something about a model, a layer, a file or an option is not usable.

    The message names the layer or file, the numbers involved and the way out.
    """


def raise_collected(failures: Iterable[str], headline: str) -> None:
    """Raise one `ZigpassError` that lists every failure; do nothing when there is none.

    Checks run over all layers before any work starts, so a user sees every problem of a model at once.
    """
    lines = list(failures)
    if lines:
        raise ZigpassError(headline + "\n" + "\n".join(f"  - {line}" for line in lines))
