"""Finds launch parameters for this GPU: `zigpass tune` or `python tools/tune.py`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Protocol, cast, get_args

import typer

from zigpass.runtime import ZigpassError
from zigpass.runtime.cuda.specialization import LaunchConfig
from zigpass.runtime.cuda.tables import NEVER, Entry, default_config, user_folder, write_table
from zigpass.runtime.layout import ScaleAxis
from zigpass.tools.break_even import break_even, describe_break_even

_log = logging.getLogger(__name__)

SHAPES = (
    "4096-11008-4096", "4096-14336-4096", "8192-28672-8192", "4096x4096", "6144x4096", "14336x4096", "8192x8192",
    "10240x8192",
)  # fmt: skip
"""MLPs of 7B, 8B and 70B models (hidden-middle-hidden) and projections (N x K)."""
BREAK_EVEN_SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9)
"""A launch that does not pay at the last of them never does; five timings and a dense one take about half a second."""
DENSE_SHARE = 0.25
"""Weight of the dense time in what is minimized; the rest is the time at the sparsity."""
FINALISTS = 4
"""The best so many are measured once more, because the fastest of many is partly a lucky one: on an H100 the first four
of 25 lay within 1 %, and in another order the second time."""


class Case(Protocol):
    """Something to tune: `n` and `k` are the key of its table entry, `best` what was chosen."""

    n: int
    k: int
    best: LaunchConfig | None

    def compile(self, configs: Sequence[LaunchConfig], sparsity: float) -> None:
        """Compile what `time` will need, all at once."""

    def time(self, config: LaunchConfig, sparsity: float | None) -> float:
        """Microseconds of a launch; `ZigpassError` where the parameters do not fit."""

    def time_alone(self, config: LaunchConfig, sparsity: float | None) -> float:
        """As `time`, with every other launch that `time` includes dense."""


def parse_shape(text: str) -> tuple[int, ...]:
    """ "4096x14336" is one matrix N x K, "4096-14336-4096" an MLP hidden-middle-hidden.

    Raises:
        ZigpassError: neither.
    """
    for separator, length in (("x", 2), ("-", 3)):
        parts = text.split(separator)
        if len(parts) == length and all(part.isdigit() and int(part) > 0 for part in parts):
            numbers = tuple(map(int, parts))
            if length == 2 or numbers[0] == numbers[2]:
                return numbers
    raise ZigpassError(f'"{text}" is not a shape: write NxK for a matrix or hidden-middle-hidden for an MLP')


def geometries(axis: ScaleAxis) -> list[LaunchConfig]:
    """Warps, blocks and depth that fill the registers of a multiprocessor: 16 warps of 128, 12 of 168 or 8 of 255."""
    depth_of = {16: 2, 12: 3} if axis == "in" else {16: 1, 12: 2, 8: 2}
    grid = itertools.product((1, 2, 4), (1, 2, 3, 4, 6, 8, 16), (1, 2, 3, 4))
    return [
        LaunchConfig(row_warps, column_warps, blocks, depth_of[warps])
        for row_warps, column_warps, blocks in grid
        if (warps := row_warps * column_warps * blocks) in depth_of and row_warps * column_warps >= 4
    ]


def refinements(best: LaunchConfig) -> list[tuple[LaunchConfig, ...]]:
    """What to vary of the best so far, one thing after the other; each alternative replaces its field only."""
    replace = dataclasses.replace
    return [
        (replace(best, fetch=256),),
        (replace(best, lockstep=True),),
        tuple(replace(best, early=columns) for columns in (32, 64, 96, 128)),
        tuple(replace(best, early_dense=columns) for columns in (64, 96, 128, 256)),
    ]


def search(
    case: Case, axis: ScaleAxis, sparsity: float, seconds: float, clock: Callable[[], float] = time.monotonic
) -> tuple[LaunchConfig, float, int]:
    """The fastest launch parameters found in `seconds`, their score in microseconds, and how many were tried.

    The geometry first, starting from the default, then refinements of the best, then the finalists once more. What does
    not fit the GPU is left out.

    Raises:
        ZigpassError: nothing fits.
    """
    end = clock() + seconds
    tried: dict[LaunchConfig, float] = {}

    def measure(config: LaunchConfig) -> float:
        try:
            sparse, dense = case.time(config, sparsity), case.time(config, None)
        except ZigpassError as error:
            _log.debug("%s does not fit %dx%d: %s", config, case.n, case.k, error)
            return float("inf")
        return (1 - DENSE_SHARE) * sparse + DENSE_SHARE * dense

    def score(config: LaunchConfig) -> None:
        if config not in tried:
            tried[config] = measure(config)

    case.compile(geometries(axis), sparsity)
    score(default_config(4, axis == "out", 1))
    for config in geometries(axis):
        if clock() >= end:
            break
        score(config)
    best = min(tried, key=tried.__getitem__)
    for index in range(len(refinements(best))):
        alternatives = refinements(best)[index]
        if clock() < end:
            case.compile(alternatives, sparsity)
        for config in alternatives:
            if clock() < end:
                score(config)
        best = min(tried, key=tried.__getitem__)
    if tried[best] == float("inf"):
        raise ZigpassError(f"no launch parameters fit {case.n}x{case.k} on this GPU")
    finalists = sorted(tried, key=tried.__getitem__)[:FINALISTS]
    again = {config: measure(config) for config in finalists if clock() < end} or {best: tried[best]}
    best = min(again, key=again.__getitem__)
    return best, again[best], len(tried)


def measure_break_even(case: Case, config: LaunchConfig) -> float:
    """The least sparsity at which a sparse launch is not slower than a dense one; `NEVER` where it always is."""
    curve = [(sparsity, case.time_alone(config, sparsity)) for sparsity in BREAK_EVEN_SPARSITIES]
    found = break_even(curve, case.time_alone(config, None))
    return NEVER if found is None else round(found, 2)


def cases_of(shape: tuple[int, ...], axis: ScaleAxis, band: int | None) -> Iterator[Case]:
    """The launches of a shape: the matrix, or gate+up and down of an MLP."""
    from zigpass.tools.tuned_cases import DownCase, SingleCase, UpCase

    if len(shape) == 2:
        yield SingleCase(*shape, axis, band)
    else:
        up = UpCase(shape[0], shape[1], axis, band)
        yield up
        yield DownCase(up)


def tune(
    shapes: Annotated[
        list[str] | None, typer.Argument(help="NxK, or hidden-middle-hidden; default: 7B to 70B.")
    ] = None,
    axis: Annotated[list[str], typer.Option(help="Scale axes to tune: in, out.")] = ["in", "out"],  # noqa: B006
    sparsity: Annotated[float, typer.Option(min=0, max=0.99, help="Share of inactive inputs.")] = 0.5,
    band: Annotated[list[int], typer.Option(help="Bands to compare; 0 is one band of all rows.")] = [1024],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=1, help="Time for everything.")] = 300.0,
    out: Annotated[Path | None, typer.Option(help="Table to write; default: your own, which is read first.")] = None,
) -> None:
    """Measure launch parameters on this GPU and write them to a table that later launches read."""
    parsed = [parse_shape(shape) for shape in shapes or SHAPES]
    axes = [parse_scale_axis(name) for name in axis]
    bad = [value for value in band if value < 0 or value % 128]
    if bad:
        raise ZigpassError(f"a band is a multiple of 128 rows, or 0 for one band of all rows; got {bad}")
    from zigpass.tools.gpu_cases import require_gpu

    require_gpu()
    import torch

    from zigpass.progress import counting
    from zigpass.runtime.cuda.device import get_device

    device = get_device(torch.cuda.current_device())
    path = out or user_folder() / f"sm_{device.arch}.json"
    launches = sum(1 if len(shape) == 2 else 2 for shape in parsed) * len(axes) * len(band)
    end = time.monotonic() + seconds
    best: dict[tuple[ScaleAxis, int, int], tuple[float, Entry, int]] = {}
    with counting(launches, "tuning") as advance:
        left = launches
        for one_axis, shape, rows in itertools.product(axes, parsed, band):
            for case in cases_of(shape, one_axis, rows or None):
                share = max(0.0, end - time.monotonic()) / left
                config, us, tried = search(case, one_axis, sparsity, share)
                case.best = config  # down is tuned after it
                even, key = measure_break_even(case, config), (one_axis, case.n, case.k)
                entry = Entry(4, one_axis, 1, case.n, case.k, config, even)
                if key not in best or us < best[key][0]:
                    best[key] = (us, entry, rows)
                typer.echo(
                    f"{one_axis:3} {case.n}x{case.k} band {rows}: {us:.2f} us, {tried} tried, {describe(config)},"
                    f" break-even {describe_break_even(even)}"
                )
                left -= 1
                advance()
            torch.cuda.empty_cache()
    if len(band) > 1:
        for (one_axis, n, k), (us, _, rows) in best.items():
            typer.echo(f"{one_axis:3} {n}x{k}: fastest with band {rows}, {us:.2f} us")
    measured = f"zigpass tune, {sparsity:.0%} sparsity, bands {band}, {seconds:.0f} s"
    write_table(path, [entry for _, entry, _ in best.values()], device.name, measured)
    typer.echo(f"wrote {len(best)} entries to {path}")


def describe(config: LaunchConfig) -> str:
    """A config as a few words: what differs from the defaults of `LaunchConfig`."""
    shown = [
        f"{config.row_warps}x{config.column_warps} warps",
        f"{config.blocks_per_sm} blocks",
        f"depth {config.depth}",
    ]
    shown += [f"{name} {getattr(config, name)}" for name in ("early", "early_dense") if getattr(config, name)]
    shown += [f"fetch {config.fetch}"] * (config.fetch != 128)
    return ", ".join(shown + ["lockstep"] * config.lockstep)


def parse_scale_axis(name: str) -> ScaleAxis:
    """ "in" or "out".

    Raises:
        ZigpassError: neither.
    """
    for axis in get_args(ScaleAxis):
        if name == axis:
            return cast(ScaleAxis, axis)
    raise ZigpassError(f'scale axis "{name}" is neither "in" nor "out"')


if __name__ == "__main__":
    from zigpass.cli import run_script

    run_script(tune)
