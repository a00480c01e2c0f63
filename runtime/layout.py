"""The zigzag layout, version 1: where every code and scale of a packed weight lies.

A weight of N output rows and K input columns is cut into *bands* of B consecutive rows. The bytes are ordered band,
then column, then row: one column of one band (a *superblock*) is contiguous, so skipping an input entry skips whole
contiguous pieces while the outputs stay side by side (paper, section "zigzag layout").

A superblock is made of blocks of 128 rows. A block of `bits`-wide codes is D = 4 * bits little-endian 32-bit words;
row r of the block is bit field j = r // D of word d = r % D. A 16-lane register loaded from a 4-bit block therefore
holds rows d = 0..15 in its lowest field, 16..31 in the next, and so on: one layout serves fp32 FMA, int8 dot products
and GPU lanes of 16 bytes.

`Layout` is the geometry only; `zigpass.runtime.pack` moves data in and out of it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Final, Literal

from .errors import ZigpassError

LAYOUT_VERSION: Final = 1
BLOCK_ROWS: Final = 128
"""Rows of a block; N is padded to a multiple of it with zero codes and zero scales."""
SUPPORTED_BITS: Final = (2, 4, 8)
COLUMN_BLOCK: Final = 32
"""Rows that share a 6-bit scale and minimum when `scale_axis` is "out"."""
COLUMN_SUPERBLOCK: Final = 256
"""Rows that share an fp16 scale and minimum when `scale_axis` is "out"."""
COLUMN_RECORD_WORDS: Final = 4
"""32-bit words that hold the scales of `COLUMN_SUPERBLOCK` rows of one column."""

ScaleAxis = Literal["in", "out"]
ZeroKind = Literal["sub_int", "sub_float", "add_float", "column"]
ZERO_KINDS: Final[tuple[ZeroKind, ...]] = ("sub_int", "sub_float", "add_float", "column")

_SPEC = re.compile(
    r"zigzag(?P<version>\d+):(?P<bits>\d+)bit:(?P<n>\d+)x(?P<k>\d+):"
    r"(?P<axis>in|out)(?P<group>\d+):(?P<zero>\w+):band(?P<band>\d+)(?P<perm>:perm)?"
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Geometry of one packed weight.

    Attributes:
        n: out_features N, rows of the weight (unpadded).
        k: in_features K, columns of the weight.
        bits: width of a code: 2, 4 or 8.
        scale_axis: "in": a scale and zero per (row, group of `group_size` inputs), as GPTQ, AWQ, HQQ, torchao and
            GGUF Q4_0/Q4_1 hold them. "out": the paper's form, per column, blocks of 32 rows with a 6-bit scale and
            minimum under an fp16 pair per 256 rows.
        group_size: inputs that share a scale ("in"; the last group may be shorter), or 32 ("out").
        zero_kind: "sub_int" s*(q-z) with integer z, "sub_float" s*(q-z) with float z, "add_float" s*q+z,
            "column" d*scale6*q - dmin*min6 (exactly when scale_axis is "out").
        band: rows B of a band, a multiple of 128; at most N padded to 128.
        permuted: the columns are stored in another order than the inputs, and one more tensor `perm` says which
            ("in" only): GPTQ's act-order, where the inputs of a group are not neighbours.

    Raises:
        ZigpassError: a field is out of range; the message names it.
    """

    n: int
    k: int
    bits: int
    scale_axis: ScaleAxis
    group_size: int
    zero_kind: ZeroKind
    band: int
    permuted: bool = False

    def __post_init__(self) -> None:
        if self.n <= 0 or self.k <= 0:
            raise ZigpassError(f"a weight needs at least one row and one column, got N={self.n}, K={self.k}")
        if self.bits not in SUPPORTED_BITS:
            raise ZigpassError(f"bits must be one of {SUPPORTED_BITS}, got {self.bits}")
        if self.scale_axis not in ("in", "out"):
            raise ZigpassError(f'scale_axis must be "in" or "out", got {self.scale_axis!r}')
        if self.zero_kind not in ZERO_KINDS:
            raise ZigpassError(f"zero_kind must be one of {ZERO_KINDS}, got {self.zero_kind!r}")
        if (self.scale_axis == "out") != (self.zero_kind == "column"):
            raise ZigpassError(f'scale_axis "{self.scale_axis}" does not go with zero_kind "{self.zero_kind}"')
        if self.group_size <= 0:
            raise ZigpassError(f"group_size must be positive, got {self.group_size}")
        if self.scale_axis == "out" and self.group_size != COLUMN_BLOCK:
            raise ZigpassError(f'scale_axis "out" has blocks of {COLUMN_BLOCK} rows, got group_size {self.group_size}')
        if self.permuted and self.scale_axis != "in":
            raise ZigpassError(
                f'scale_axis "{self.scale_axis}" has no groups of inputs, so its columns are not permuted'
            )
        if self.band <= 0 or self.band % BLOCK_ROWS or self.band > self.padded_n:
            raise ZigpassError(
                f"band must be a multiple of {BLOCK_ROWS} and at most {self.padded_n} for N={self.n}, got {self.band}"
            )

    @functools.cached_property
    def padded_n(self) -> int:
        """N rounded up to whole blocks of 128 rows."""
        return round_up(self.n, BLOCK_ROWS)

    @property
    def num_bands(self) -> int:
        return -(-self.padded_n // self.band)

    @property
    def num_groups(self) -> int:
        """Groups of inputs along K (scale_axis "in"); the last one may be shorter than `group_size`."""
        return -(-self.k // self.group_size)

    @property
    def words_per_block(self) -> int:
        """D: 32-bit words of 128 codes."""
        return BLOCK_ROWS * self.bits // 32

    @functools.cached_property
    def num_code_words(self) -> int:
        return self.padded_n // BLOCK_ROWS * self.k * self.words_per_block

    @functools.cached_property
    def num_scales(self) -> int:
        """Elements of the packed scale tensor: floats ("in") or int32 words of column records ("out")."""
        if self.scale_axis == "in":
            return self.num_groups * self.padded_n
        return sum(self.band_records(band) for band in range(self.num_bands)) * self.k * COLUMN_RECORD_WORDS

    @functools.cached_property
    def num_tensors(self) -> int:
        """Tensors of a packed weight: codes, scale, zero when the scale axis is "in", and perm when permuted."""
        return (3 if self.scale_axis == "in" else 2) + self.permuted

    def band_rows(self, band: int) -> tuple[int, int]:
        """First row and end row (padded) of a band."""
        return band * self.band, min((band + 1) * self.band, self.padded_n)

    def band_superblocks(self, band: int) -> tuple[int, int]:
        """First and end index of the 256-row superblocks that a band touches (scale_axis "out").

        A band that ends inside a superblock shares its record with the next band, and both hold a copy: any band
        size stays lossless at the price of one repeated record.
        """
        start, end = self.band_rows(band)
        return start // COLUMN_SUPERBLOCK, -(-end // COLUMN_SUPERBLOCK)

    def band_records(self, band: int) -> int:
        """Column records that one column of a band holds (scale_axis "out")."""
        start, end = self.band_superblocks(band)
        return end - start

    @functools.cached_property
    def spec(self) -> str:
        """The layout as one readable word; `parse` reads it back. Ops carry it, so graph dumps show it."""
        return (
            f"zigzag{LAYOUT_VERSION}:{self.bits}bit:{self.n}x{self.k}:"
            f"{self.scale_axis}{self.group_size}:{self.zero_kind}:band{self.band}{':perm' * self.permuted}"
        )

    @staticmethod
    def parse(spec: str) -> Layout:
        """Read a layout from its `spec`.

        Raises:
            ZigpassError: not a layout spec, an unknown version, or fields out of range.
        """
        return _parse(spec)

    def with_band(self, band: int | None) -> Layout:
        """The same weight with another band; None means one band of all rows, and a larger band is cut to that."""
        return dataclasses.replace(self, band=self.padded_n if band is None else min(band, self.padded_n))


@functools.lru_cache(maxsize=4096)
def _parse(spec: str) -> Layout:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ZigpassError(f"not a zigzag layout: {spec!r}")
    if int(match["version"]) != LAYOUT_VERSION:
        raise ZigpassError(
            f"{spec!r} has layout version {match['version']}, this zigpass reads version {LAYOUT_VERSION}"
        )
    return Layout(
        n=int(match["n"]),
        k=int(match["k"]),
        bits=int(match["bits"]),
        scale_axis=match["axis"],  # type: ignore[arg-type]  # the pattern and __post_init__ admit only valid values
        group_size=int(match["group"]),
        zero_kind=match["zero"],  # type: ignore[arg-type]
        band=int(match["band"]),
        permuted=match["perm"] is not None,
    )


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
