"""Launch parameters by compute capability and shape.

A table is a JSON file `sm_<arch>.json` beside this one: measured entries for one architecture. A launch takes the
entry of the nearest shape (in octaves of N and K) with the same bits, scale axis and rows; an architecture without a
table takes the defaults below.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

from ...errors import ZigpassError
from ..specialization import LaunchConfig, WeightKind

FOLDER = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Entry:
    """A measured choice: `config` was the fastest for `n` rows (all weights of the launch) and `k` columns."""

    bits: int
    scale_axis: str
    rows: int
    n: int
    k: int
    config: LaunchConfig

    def distance(self, n: int, k: int) -> float:
        return abs(math.log2(self.n / n)) + abs(math.log2(self.k / k))


def default_config(bits: int, scale_axis_out: bool, rows: int) -> LaunchConfig:
    """What fits the registers of every supported architecture without spilling, for a shape without an entry."""
    row_warps = {2: 2, 4: 4, 8: 4}[bits]
    if scale_axis_out:
        return LaunchConfig(row_warps, 2, 1, 2)
    if rows > 1:
        return LaunchConfig(row_warps, 8 // row_warps, 1, 2)
    if bits == 2:
        return LaunchConfig(row_warps, 6, 1, 2)
    return LaunchConfig(row_warps, 4, 1, 2)


def choose_config(arch: int, kind: WeightKind, rows: int, n: int, k: int) -> LaunchConfig:
    """The launch parameters for `n` rows in all weights of a launch, `k` columns and `rows` rows of x."""
    axis = "out" if kind.scale_axis_out else "in"
    entries = [
        entry for entry in load_table(arch) if (entry.bits, entry.scale_axis, entry.rows) == (kind.bits, axis, rows)
    ]
    if not entries:
        return default_config(kind.bits, kind.scale_axis_out, rows)
    return min(entries, key=lambda entry: entry.distance(n, k)).config


@functools.cache
def load_table(arch: int) -> tuple[Entry, ...]:
    """The entries shipped for sm_`arch`, none when there is no table.

    Raises:
        ZigpassError: the file is not a table.
    """
    path = FOLDER / f"sm_{arch}.json"
    if not path.exists():
        return ()
    return parse_table(json.loads(path.read_text()), path.name)


def shipped_tables() -> list[int]:
    """The architectures that have a table."""
    return sorted(int(path.stem.removeprefix("sm_")) for path in FOLDER.glob("sm_*.json"))


def parse_table(data: dict[str, Any], name: str) -> tuple[Entry, ...]:
    try:
        return tuple(Entry(**{**entry, "config": LaunchConfig(**entry["config"])}) for entry in data["entries"])
    except (KeyError, TypeError) as error:
        raise ZigpassError(f"{name} is not a launch table: {error}") from error
