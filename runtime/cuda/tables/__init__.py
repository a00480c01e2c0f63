"""Launch parameters by compute capability and shape.

A table is a JSON file `sm_<arch>.json`: measured entries for one architecture. Some are shipped beside this file; those
that `zigpass tune` wrote into `user_folder` go first. A launch takes the entry of the nearest shape (in octaves of N
and K) with the same bits, scale axis and rows; without one it takes the defaults below.

An entry may also say from which sparsity on a sparse launch of its very shape beats a dense one. Where that is never,
launches of the shape are dense whatever the threshold: they read every entry, as with a threshold of 0.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...cache_root import cache_root
from ...errors import ZigpassError
from ..specialization import LaunchConfig, WeightKind

FOLDER = Path(__file__).resolve().parent
NEVER = math.inf
"""`Entry.break_even` of a shape that no sparsity makes faster."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A measured choice: `config` was the fastest for `n` rows (all weights of the launch) and `k` columns.

    Attributes:
        break_even: the least sparsity at which a sparse launch is not slower than a dense one; infinity for never
            (null in the file), None for not measured (left out of the file).
    """

    bits: int
    scale_axis: str
    rows: int
    n: int
    k: int
    config: LaunchConfig
    break_even: float | None = None

    @property
    def key(self) -> tuple[int, str, int, int, int]:
        """What an entry is for."""
        return self.bits, self.scale_axis, self.rows, self.n, self.k

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


def find_entry(arch: int, kind: WeightKind, rows: int, n: int, k: int) -> Entry | None:
    """What was measured for this very shape."""
    key = (kind.bits, "out" if kind.scale_axis_out else "in", rows, n, k)
    return next((entry for entry in load_table(arch) if entry.key == key), None)


def sparsity_pays(arch: int, kind: WeightKind, rows: int, n: int, k: int) -> bool:
    """False where the table says that a sparse launch of this very shape is never faster than a dense one."""
    entry = find_entry(arch, kind, rows, n, k)
    return entry is None or entry.break_even != NEVER


@functools.cache
def load_table(arch: int) -> tuple[Entry, ...]:
    """The user's entries for sm_`arch` and then the shipped ones; of two equally near ones the first is taken.

    Raises:
        ZigpassError: a file is not a table.
    """
    return read_table(user_folder() / f"sm_{arch}.json") + read_table(FOLDER / f"sm_{arch}.json")


def user_folder() -> Path:
    """Where `zigpass tune` leaves tables."""
    return cache_root() / "tables"


def read_table(path: Path) -> tuple[Entry, ...]:
    """The entries of a file, none when it does not exist.

    Raises:
        ZigpassError: it is not a table.
    """
    if not path.exists():
        return ()
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ZigpassError(f"{path} is not a launch table: {error}; delete it or run zigpass tune again") from error
    return parse_table(data, str(path))


def write_table(path: Path, entries: Sequence[Entry], gpu: str, measured: str) -> None:
    """Write entries beside those that the file holds; an entry replaces one of the same shape and kind."""
    fresh = {entry.key: entry for entry in (*read_table(path), *entries)}
    lines = ",\n".join("  " + json.dumps(_plain(entry)) for entry in fresh.values())
    head = f' "gpu": {json.dumps(gpu)},\n "measured": {json.dumps(measured)},\n "entries": [\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + head + lines + "\n ]\n}\n")
    load_table.cache_clear()


def _plain(entry: Entry) -> dict[str, Any]:
    """As JSON knows it: null for never, nothing for not measured."""
    plain = dataclasses.asdict(entry)
    if entry.break_even is None:
        del plain["break_even"]
    elif entry.break_even == NEVER:
        plain["break_even"] = None
    return plain


def shipped_tables() -> list[int]:
    """The architectures that have a table."""
    return sorted(int(path.stem.removeprefix("sm_")) for path in FOLDER.glob("sm_*.json"))


def user_tables() -> list[Path]:
    """The tables that `zigpass tune` has left."""
    return sorted(user_folder().glob("sm_*.json"))


def parse_table(data: dict[str, Any], name: str) -> tuple[Entry, ...]:
    try:
        return tuple(
            Entry(**entry | {"config": LaunchConfig(**entry["config"]), "break_even": _read_break_even(entry)})
            for entry in data["entries"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ZigpassError(f"{name} is not a launch table: {error}") from error


def _read_break_even(entry: dict[str, Any]) -> float | None:
    if "break_even" not in entry:
        return None
    return NEVER if entry["break_even"] is None else float(entry["break_even"])
