"""Everything about a launch that does not change from call to call, worked out once per shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from torch import Tensor

from ..errors import ZigpassError
from ..layout import Layout
from .arguments import Arguments, Divider
from .device import Device, get_device
from .formats import FORMATS, NONE, ZERO_KIND_CODES
from .launch import Function, get_function
from .specialization import (
    COMBINE_THREADS,
    COMBINED_ROWS,
    NO_PARTIALS,
    OUT_GROUP,
    Gemv,
    LaunchConfig,
    Partials,
    WeightKind,
    count_tiles,
    count_words,
)
from .tables import choose_config, sparsity_pays

SMALLEST_PIECE = 2
"""Words of 32 columns that a block gets at least; with less, adding up the blocks costs more than their share."""
LARGEST_SPACE = 1 << 31
"""Words times blocks must stay below: the kernels divide in 32 bits."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One launch of `gemv.cu` for given layouts and dtypes.

    Attributes:
        gemv: the specialization.
        combine: adds up the partial sums; None where the next GEMV does.
        blocks: the grid of the GEMV; `combine_blocks` of the other, a row of x.
        tiles: of all weights.
        partial_floats: size of the workspace that blocks leave their sums in.
        template: an `Arguments` with every field that does not change.
    """

    device: Device
    gemv: Gemv
    function: Function
    combine: Function | None
    combine_blocks: int
    blocks: int
    tiles: int
    first_tiles: tuple[int, ...]
    partial_floats: int
    template: bytes

    @property
    def partials(self) -> Partials:
        """How this launch leaves its sums: a share that begins inside a tile adds a block to it."""
        return Partials(self.gemv.tile, 4 if -(-self.blocks // self.tiles) + 1 <= 4 else 8)


@functools.lru_cache(maxsize=4096)
def chain(plan: Plan, producer: Plan, bands: tuple[int, int]) -> Plan:
    """`plan` reading the partial sums that `producer` leaves; `bands` of its gate (1 for none) and up."""
    arguments = Arguments.from_buffer_copy(plan.template)
    if plan.gemv.middle != producer.partials:
        raise ValueError(f"compiled for {plan.gemv.middle}, the producer leaves {producer.partials}")
    arguments.in_up_tile = producer.first_tiles[-1]
    arguments.in_blocks = producer.blocks
    arguments.in_tiles = Divider.of(producer.tiles)
    arguments.gate_band, arguments.up_band = (Divider.of(band) for band in bands)
    return dataclasses.replace(plan, template=bytes(arguments))


def weight_kind(layout: Layout, tensors: Sequence[Tensor]) -> WeightKind | None:
    """What `gemv.cu` needs to know of a weight; None where it has no kernel (scale axis "out" with 2 or 8 bits)."""
    if layout.scale_axis == "out":
        return WeightKind(4, True, OUT_GROUP, 0, 0, 0) if layout.bits == 4 else None
    # A group longer than K is one group; the padded length keeps specializations few.
    return WeightKind(
        layout.bits,
        False,
        min(layout.group_size, OUT_GROUP),
        FORMATS[tensors[1].dtype],
        FORMATS[tensors[2].dtype],
        ZERO_KIND_CODES[layout.zero_kind],
        layout.permuted,
    )


@functools.lru_cache(maxsize=4096)
def get_plan(
    device_index: int,
    kind: WeightKind,
    specs: tuple[str, ...],
    x_format: int,
    out_format: int,
    sparse: bool,
    rows: int,
    has_gate: bool = False,
    activation: int = 0,
    middle: Partials = NO_PARTIALS,
    config: LaunchConfig | None = None,
) -> Plan:
    """The plan of a launch; compiles and loads its kernel the first time.

    Args:
        kind: shared by all weights.
        specs: `Layout.spec` of each weight; all have the same K.
        x_format, out_format: codes of `formats`; NONE means partial sums.
        sparse: look for inactive entries; not done where the table says that it never pays, unless `config` is given.
        rows: 1, 2 or 4: rows of x that the kernel holds.
        middle: `Plan.partials` of the launch whose partial sums are x.
        config: launch parameters to use instead of the table's.
    """
    device = get_device(device_index)
    layouts = [Layout.parse(spec) for spec in specs]
    if sparse and config is None:
        padded_n = sum(layout.padded_n for layout in layouts)
        sparse = sparsity_pays(device.arch, kind, rows, padded_n, layouts[0].k)
    gemv = Gemv(kind, LaunchConfig(1, 1, 1, 1), x_format, out_format, sparse, rows, has_gate, activation, middle)
    return build_plan(device, gemv, layouts, config)


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a launch is cut: the specialization, the grid, tiles of each weight, words of a tile."""

    gemv: Gemv
    blocks: int
    tiles: tuple[int, ...]
    words: int


def cut_launch(device: Device, wanted: Gemv, layouts: Sequence[Layout], config: LaunchConfig | None) -> Shape:
    """Choose the launch parameters that `wanted` leaves open, from the table when `config` is None.

    Raises:
        ZigpassError: the weights are too large for one launch, or their scales for the shared memory.
    """
    kind, k = wanted.kind, layouts[0].k
    if config is None:
        config = choose_config(device.arch, kind, wanted.rows, sum(layout.padded_n for layout in layouts), k)
    config = fit_rows(config, kind, max(min(layout.band, layout.padded_n) for layout in layouts))
    words = count_words(k, kind.group)
    slots = device.multiprocessors * config.blocks_per_sm
    tile = dataclasses.replace(wanted, config=config).tile
    tiles = tuple(count_tiles(layout, tile) for layout in layouts)
    blocks = max(1, min(slots, words * sum(tiles) // SMALLEST_PIECE))
    if words * sum(tiles) * (blocks + 1) >= LARGEST_SPACE:
        raise ZigpassError(f"{layouts[0].spec} is too large for one launch")
    gemv = dataclasses.replace(wanted, config=config)
    if wanted.out_format != NONE:
        # A block of zigzag_combine fits every multiprocessor while zigzag_gemv runs there: few rows each, but one wave.
        outputs = sum(tiles) * tile * wanted.rows
        fits = (rows for rows in COMBINED_ROWS if outputs <= rows * device.multiprocessors)
        gemv = dataclasses.replace(gemv, combined_rows=next(fits, COMBINED_ROWS[-1]))
    columns = 32 * min(words, -(-words * sum(tiles) // blocks))
    fitted = gemv.fit(columns, device.shared_limit // config.blocks_per_sm - 1024)
    if fitted is None:
        raise ZigpassError(
            f"{layouts[0].spec}: scales of {gemv.tile} rows do not fit {device.shared_limit} bytes of shared memory"
        )
    return Shape(fitted, blocks, tiles, words)


def build_plan(device: Device, wanted: Gemv, layouts: Sequence[Layout], config: LaunchConfig | None) -> Plan:
    """As `get_plan`, for a specialization whose launch parameters are still open."""
    shape = cut_launch(device, wanted, layouts, config)
    fitted, blocks, tiles = shape.gemv, shape.blocks, shape.tiles
    arguments = Arguments()
    arguments.num_weights, arguments.k = len(layouts), layouts[0].k
    arguments.gate_bias_format = arguments.up_bias_format = NONE
    first_tiles = tuple(sum(tiles[:index]) for index in range(len(tiles)))
    for weight, layout, first in zip(arguments.weights, layouts, first_tiles, strict=False):
        weight.n, weight.padded_n, weight.band, weight.first_tile = layout.n, layout.padded_n, layout.band, first
        weight.bias_format = NONE
        weight.band_tiles = Divider.of(-(-layout.band // fitted.tile))
    arguments.words, arguments.tiles = Divider.of(shape.words), Divider.of(sum(tiles))
    arguments.blocks = Divider.of(blocks)
    combine = None
    if wanted.out_format != NONE:
        combine = get_function(device, "gemv.cu", "zigzag_combine", fitted.macros, COMBINE_THREADS, dependent=True)
    return Plan(
        device=device,
        gemv=fitted,
        function=get_function(
            device, "gemv.cu", "zigzag_gemv", fitted.macros, fitted.config.threads, fitted.shared_bytes, True
        ),
        combine=combine,
        combine_blocks=sum(tiles) * fitted.tile // fitted.combined_rows,
        blocks=blocks,
        tiles=sum(tiles),
        first_tiles=first_tiles,
        partial_floats=(blocks + sum(tiles)) * fitted.tile * wanted.rows,
        template=bytes(arguments),
    )


def fit_rows(config: LaunchConfig, kind: WeightKind, band: int) -> LaunchConfig:
    """Give warps that would lie past the end of a band to the columns instead."""
    row_warps, column_warps = config.row_warps, config.column_warps
    while row_warps > 1 and row_warps // 2 * (1024 // kind.bits) >= band:
        row_warps, column_warps = row_warps // 2, column_warps * 2
    return dataclasses.replace(config, row_warps=row_warps, column_warps=column_warps)
