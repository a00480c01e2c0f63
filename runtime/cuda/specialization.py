"""Which kernel a launch needs: the macros of `gemv.cu`, and the sizes that follow from them."""

from __future__ import annotations

import ctypes
import dataclasses

from ..layout import Layout, round_up
from .arguments import Arguments
from .formats import F32, FORMAT_BYTES, NONE

LANES = 32
CUT_UNITS = 3
"""Units of a pass that it shares with other passes, at most: both ends of the first piece, one of the second."""
MOST_UNIT_WORDS = 8
"""Words of 32 columns that one lane scans at most; a unit is a group of scales or, where that is longer, a divisor."""
OUT_GROUP = 1 << 20
"""GROUP of the scale axis "out", which has no groups: larger than any K."""


def max_rows(bits: int, arch: int) -> int:
    """Rows of x that one launch takes without spilling registers; 2 bits hold twice the sums.

    Before sm_80 a step is two tensor-core instructions, whose operands live longer.
    """
    rows = 2 if bits == 2 else 4
    return rows if arch >= 80 else rows // 2


@dataclasses.dataclass(frozen=True)
class WeightKind:
    """What the weights of one launch have in common, or `fits` is False and they are launched one by one.

    Attributes:
        bits, scale_axis, group_size, zero_kind: as in `Layout`; group_size is `OUT_GROUP` for axis "out".
        scale_format, zero_format: codes of `formats`.
        permuted: columns are stored in another order than the inputs.
    """

    bits: int
    scale_axis_out: bool
    group: int
    scale_format: int
    zero_format: int
    zero_kind: int
    permuted: bool = False


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """What the tuner chooses for a shape.

    Attributes:
        row_warps: warps side by side along the rows of a tile.
        column_warps: warps that share the active list of a block.
        blocks_per_sm: blocks of the grid, one wave, on a multiprocessor.
        depth: steps of 16 columns in flight per warp.
        chunk: most columns a block compacts at a time; cut down to what shared memory holds.
        early: columns that a block asks L2 for before x is known.
        early_dense: the same in a dense launch, which needs them all.
        lockstep: warps side by side wait for each other at every step.
        fetch: bytes that L2 reads at least, 128 or 256.
    """

    row_warps: int
    column_warps: int
    blocks_per_sm: int
    depth: int
    chunk: int = 4096
    early: int = 0
    early_dense: int = 0
    lockstep: bool = False
    fetch: int = 128

    @property
    def threads(self) -> int:
        return 32 * self.row_warps * self.column_warps


@dataclasses.dataclass(frozen=True)
class Partials:
    """How a launch leaves its partial sums.

    Attributes:
        tile: rows of its tiles.
        at_once: blocks that share a tile, rounded up to 4 or 8: sums that a reader waits for together.
    """

    tile: int
    at_once: int


COMBINE_THREADS, COMBINED_ROWS = 128, (32, 64, 128)
"""Threads of a block of `zigzag_combine`, and rows that it may add up."""
NO_PARTIALS = Partials(1, 4)
"""Of a launch whose x is not made of partial sums."""


@dataclasses.dataclass(frozen=True)
class Gemv:
    """One specialization of `gemv.cu`; `macros` spells it for the compiler."""

    kind: WeightKind
    config: LaunchConfig
    x_format: int
    out_format: int
    sparse: bool
    rows: int
    has_gate: bool = False
    activation: int = 0
    middle: Partials = NO_PARTIALS
    """How the launch before leaves the partial sums that are x."""
    combined_rows: int = COMBINED_ROWS[0]
    """Rows of a block of `zigzag_combine`."""

    @property
    def tile(self) -> int:
        """Rows that a block works on at a time."""
        return 1024 // self.kind.bits * self.config.row_warps

    @property
    def parts(self) -> int:
        """Half-precision parts of x: one holds what a 16-bit x or result does, where more parts cost more products."""
        wide = F32 in (self.x_format, self.out_format)
        return 2 if wide or not self.kind.scale_axis_out else 1

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory; the kernel asserts that its struct fits."""
        kind, config = self.kind, self.config
        unit = unit_words(kind.group)
        units = -(-(config.chunk // 32) // unit) + CUT_UNITS
        active_list = round_up(config.chunk * 4 * (1 + self.rows) + units * 4, 16)
        scale_bytes = FORMAT_BYTES[kind.scale_format] + FORMAT_BYTES[kind.zero_format]
        staged = 1 if kind.scale_axis_out else 1024 // kind.bits * scale_bytes
        warps = config.row_warps * config.column_warps
        reduced = config.column_warps * self.tile * self.rows * 4
        listed = active_list + round_up(warps * 2 * staged, 16)
        gathers = config.chunk // 2 if self.x_format == NONE else 0
        marks = round_up(config.chunk // 8, 16) + round_up(units * round_up(unit, 4), 8) + self.rows * warps * 4 + 64
        return round_up(reduced + max(listed, reduced) + self.rows * config.chunk * 4 + gathers + marks, 16)

    @property
    def macros(self) -> dict[str, int]:
        kind, config = self.kind, self.config
        return {
            "BITS": kind.bits,
            "SCALE_AXIS_OUT": int(kind.scale_axis_out),
            "GROUP": kind.group,
            "SCALE_FORMAT": kind.scale_format,
            "ZERO_FORMAT": kind.zero_format,
            "ZERO_KIND": kind.zero_kind,
            "X_FORMAT": self.x_format,
            "HAS_GATE": int(self.has_gate),
            "ACTIVATION": self.activation,
            "OUT_FORMAT": self.out_format,
            "SPARSE": int(self.sparse),
            "ROWS": self.rows,
            "ROW_WARPS": config.row_warps,
            "COLUMN_WARPS": config.column_warps,
            "BLOCKS_PER_SM": config.blocks_per_sm,
            "CHUNK": config.chunk,
            "PARTS": self.parts,
            "DEPTH": config.depth,
            "PERMUTED": int(kind.permuted),
            "EARLY": config.early if self.sparse else config.early_dense,
            "LOCKSTEP": int(config.lockstep),
            "FETCH": config.fetch,
            "COMBINE_THREADS": COMBINE_THREADS,
            "COMBINED_ROWS": self.combined_rows,
            "IN_TILE": self.middle.tile,
            "PARTS_AT_ONCE": self.middle.at_once,
            "SHARED_BYTES": self.shared_bytes,
            "ARGUMENT_BYTES": ctypes.sizeof(Arguments),
        }

    def fit(self, columns: int, shared_limit: int) -> Gemv | None:
        """This specialization with the largest chunk that is useful and fits, or None when none fits.

        Args:
            columns: most columns that a block gets of one tile.
            shared_limit: bytes of shared memory that a block may take.
        """
        # Powers of two keep specializations few; with its ends cut anywhere, a pass holds a unit for each lane.
        most = min(self.config.chunk, (LANES - CUT_UNITS) * 32 * unit_words(self.kind.group))
        chunk, column_warps = min(most, max(128, 1 << (columns - 1).bit_length())), self.config.column_warps
        while column_warps:
            while chunk >= 64:
                config = dataclasses.replace(self.config, chunk=chunk, column_warps=column_warps)
                fitted = dataclasses.replace(self, config=config)
                if fitted.shared_bytes <= shared_limit:
                    return fitted
                chunk = chunk // 2 // 32 * 32
            chunk, column_warps = 64, column_warps // 2  # sums and scales of fewer warps
        return None


def unit_words(group: int) -> int:
    """Words of 32 columns of a unit: the largest divisor of a group's that a lane scans."""
    words = round_up(group, 32) // 32
    return max(unit for unit in range(1, MOST_UNIT_WORDS + 1) if words % unit == 0)


def count_tiles(layout: Layout, tile: int) -> int:
    """Tiles of a weight: bands cut into pieces of `tile` rows."""
    last_start, last_end = layout.band_rows(layout.num_bands - 1)
    return (layout.num_bands - 1) * -(-layout.band // tile) + -(-(last_end - last_start) // tile)


def count_words(k: int, group: int) -> int:
    """Columns of a tile in words of 32, every group padded to whole words."""
    groups = -(-k // group)
    return (groups - 1) * (round_up(group, 32) // 32) + -(-(k - (groups - 1) * group) // 32)
