"""Naming sites: by kind ("mlp_in") or by a pattern of their names ("model.layers.0.*")."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence

from zigpass.runtime import ZigpassError

from .sites import Site

MLP_SITES = ("mlp_in", "mlp_mid")
"""What to pass as `sites` to leave attention dense."""


def choose_sites(sites: Iterable[Site], patterns: Sequence[str] | None) -> set[str]:
    """Names of the sites that fit at least one pattern; all of them for None.

    Raises:
        ZigpassError: a pattern fits no site.
    """
    by_name = {site.name: site for site in sites}
    if patterns is None:
        return set(by_name)
    if isinstance(patterns, str):
        patterns = (patterns,)
    return set().union(*(_fitting(by_name, pattern, "sites") for pattern in patterns))


def values_by_site(sites: Iterable[Site], values: Mapping[str, float], argument: str) -> dict[str, float]:
    """Expand {pattern: value} to {site name: value}; the last pattern that fits wins.

    Args:
        argument: the name of the caller's argument, for messages.

    Raises:
        ZigpassError: a pattern fits no site, or a value is outside [0, 1).
    """
    by_name = {site.name: site for site in sites}
    found: dict[str, float] = {}
    for pattern, value in values.items():
        if not 0 <= value < 1:
            raise ZigpassError(f"{argument}: {pattern!r} must be at least 0 and below 1, got {value}")
        found.update(dict.fromkeys(_fitting(by_name, pattern, argument), value))
    return found


def _fitting(by_name: Mapping[str, Site], pattern: str, argument: str) -> list[str]:
    names = [name for name, site in by_name.items() if site.kind == pattern or fnmatch.fnmatchcase(name, pattern)]
    if not names:
        known = [*dict.fromkeys(site.kind for site in by_name.values()), *by_name]
        nearest = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
        hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
        raise ZigpassError(f"{argument}: {pattern!r} fits no site{hint}")
    return names
