"""Times the CUDA kernels against other libraries and against what the memory can do, in one run.

Every number is the median over replays of a CUDA graph that goes through several copies of the weights, more than the
L2 cache holds; predict and compaction are part of it. Bytes are the ones that must move: active columns, all scales.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from zigpass.runtime import ZigpassError
from zigpass.runtime.cuda.arguments import Parameters
from zigpass.runtime.cuda.calls import empty_strided
from zigpass.runtime.cuda.compiler import KERNEL_FOLDER, nvrtc_version
from zigpass.runtime.cuda.device import get_device
from zigpass.runtime.cuda.formats import BF16
from zigpass.runtime.cuda.gemv import PreparedGemv
from zigpass.runtime.cuda.launch import current_stream, get_function
from zigpass.runtime.layout import ScaleAxis
from zigpass.tools.bench_gpu_peers import PEERS, Peer, time_peers
from zigpass.tools.break_even import break_even, describe_break_even
from zigpass.tools.gpu_cases import (
    ROTATED_BYTES,
    MlpCase,
    copies_of,
    graph_time,
    plan_for,
    random_weight,
    require_gpu,
    threshold_of,
)
from zigpass.tools.provenance import commit
from zigpass.tools.tune import parse_scale_axis, parse_shape

RESULTS = Path(__file__).resolve().parent / "results"

MLP_SHAPES = {"7B": (4096, 11008), "8B": (4096, 14336), "70B": (8192, 28672)}
SINGLE_SHAPES = ((4096, 4096), (6144, 4096), (4096, 14336), (14336, 4096), (8192, 8192))
SPARSITIES = (None, 0.0, 0.25, 0.5)
"""None is a dense launch; 0.0 one that looks for inactive entries and finds none."""
GATHERED_BYTES, GATHERED_COLUMNS, GATHER_PIECE = 512 << 20, 4096, 512
Row = dict[str, Any]


def gather_rate(sparsity: float) -> float:
    """GB/s of reading the active columns of bands of 1024 rows of 4 bits (512 bytes each), doing nothing with them."""
    device, k = get_device(torch.cuda.current_device()), GATHERED_COLUMNS
    codes = torch.randint(0, 256, (GATHERED_BYTES,), dtype=torch.uint8, device="cuda")
    columns = (torch.rand(k, device="cuda") >= sparsity).nonzero().flatten().int()
    out = torch.zeros(1, dtype=torch.int32, device="cuda")
    bands = GATHERED_BYTES // (k * GATHER_PIECE)
    macros = {"PIECE": GATHER_PIECE, "AT_ONCE": 8}
    function = get_function(device, "gather.cu", "zigzag_gather", macros, 256)
    numbers = (columns.numel(), bands, k)

    def read(_: int) -> None:
        parameters = Parameters((codes.data_ptr(), columns.data_ptr(), out.data_ptr()), numbers)
        function.launch((4 * device.multiprocessors, 1), current_stream(device.index), parameters.address)

    return columns.numel() * bands * GATHER_PIECE / graph_time(read, 2) / 1e3


def bench_mlp(name: str, axis: ScaleAxis, band: int | None) -> Iterator[Row]:
    """A whole MLP over sparsities; peers are silu(gate) * up between tinygemm's or cuBLAS's products."""
    hidden, middle = MLP_SHAPES[name]
    x = torch.randn(1, hidden, device="cuda", dtype=torch.bfloat16)
    both = torch.randn(1, 2 * middle, device="cuda", dtype=torch.bfloat16)
    join = torch.compile(lambda both: torch.nn.functional.silu(both[:, :middle]) * both[:, middle:])

    def time_peer(make: Callable[[int, int], Peer]) -> float:
        up, down = make(2 * middle, hidden), make(hidden, middle)

        def step(index: int) -> Tensor:
            up(index, x)
            return down(index, join(both))

        join(both)
        return graph_time(step, 16)

    peer_us = time_peers(time_peer)
    case = MlpCase(hidden, middle, axis, band)
    for sparsity in SPARSITIES:
        plans = case.plans(sparsity is not None, sparsity is not None)
        yield {
            "kind": "mlp", "name": name, "axis": axis, "band": band, "sparsity": sparsity,
            **case.time(sparsity, plans), **peer_us, "bytes": case.active_bytes(sparsity),
            "up_config": dataclasses.asdict(plans[0].gemv.config),
            "down_config": dataclasses.asdict(plans[1].gemv.config),
            "launched_sparse": [plan.gemv.sparse for plan in plans],
        }  # fmt: skip


def bench_single(n: int, k: int, axis: ScaleAxis, band: int | None) -> Iterator[Row]:
    """One GEMV over sparsities."""
    x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)

    def time_peer(make: Callable[[int, int], Peer]) -> float:
        peer = make(n, k)
        return graph_time(lambda index: peer(index, x), 32)

    peer_us = time_peers(time_peer)
    weights = copies_of(lambda: random_weight(n, k, axis, band), ROTATED_BYTES)
    for sparsity in SPARSITIES:
        threshold = threshold_of(x, sparsity)

        def step(index: int, threshold: Tensor | None = threshold) -> Tensor:
            weight = weights[index % len(weights)]
            result: Tensor = torch.ops.zigpass.linear(x, weight.tensors, None, threshold, weight.layout.spec)
            return result

        active, first = 1 - (sparsity or 0.0), weights[0]
        plan = plan_for([first.layout], first.tensors, BF16, BF16, sparsity is not None, None)
        yield {
            "kind": "gemv", "name": f"{n}x{k}", "axis": axis, "band": band, "sparsity": sparsity,
            "us": graph_time(step, max(32, len(weights))), **peer_us,
            "bytes": int(first.code_bytes * active + first.scale_bytes * (1 if axis == "in" else active)),
            "launched_sparse": [plan.gemv.sparse],
        }  # fmt: skip


def add_ratios(rows: Sequence[Row], rates: dict[float, float]) -> list[Row]:
    """Rows of one shape with what follows from them: ratios, rates, share of the memory's limit, break-even.

    Args:
        rates: GB/s of the gather by sparsity.
    """
    dense = next(row["us"] for row in rows if row["sparsity"] is None)
    curve = [(row["sparsity"], row["us"]) for row in rows if row["sparsity"] is not None]
    result = []
    for row in rows:
        rate = row["bytes"] / row["us"] / 1e3
        result.append(
            row
            | {f"ratio_{peer}": row[f"{peer}_us"] and row[f"{peer}_us"] / row["us"] for peer in PEERS}
            | {
                "ratio_dense": dense / row["us"],
                "active_gb_per_s": rate,
                "percent_of_gather": 100 * rate / rates[row["sparsity"] or 0.0],
                "break_even_with_dense": break_even(curve, dense),
                "break_even_with_tinygemm": break_even(curve, row["tinygemm_us"]),
            }
        )
    return result


def bench_host(calls: int = 100) -> Row:
    """Microseconds that the host spends on an op call outside a graph, while the GPU's queue is not full.

    "launches" and "allocate" are parts of "linear": its two kernels through the driver, and one of its two allocations.
    """
    case = MlpCase(1024, 2816, "in", None)
    weight = case.downs[0]
    x, threshold = torch.randn(1, 2816, device="cuda", dtype=torch.bfloat16), torch.zeros(1, device="cuda")
    parts = [part[0] for part in (case.gates, case.ups, case.downs)]
    tensors, specs = [part.tensors for part in parts], [part.layout.spec for part in parts]
    operands: tuple[Any, ...] = (*tensors, None, None, None, threshold, threshold, *specs, "silu")
    three, three_specs = tensors[0] + tensors[1] + tensors[0], [specs[0], specs[1], specs[0]]
    plan = plan_for([weight.layout], weight.tensors, BF16, BF16, True, None)
    gemv = PreparedGemv(plan, [weight.tensors], [None], 1, current_stream(0))
    partials = torch.empty(plan.partial_floats, device="cuda")
    addresses = (x.data_ptr(), threshold.data_ptr(), [case.out.data_ptr()], partials.data_ptr())
    steps: dict[str, Callable[[], object]] = {
        "linear": lambda: torch.ops.zigpass.linear(x, weight.tensors, None, threshold, weight.layout.spec),
        "mlp": lambda: torch.ops.zigpass.gated_mlp(case.x, *operands),
        "qkv": lambda: torch.ops.zigpass.qkv(case.x, three, [None] * 3, threshold, three_specs),
        "launches": lambda: gemv.run(*addresses),
        "allocate": lambda: empty_strided((1, 1024), (1024, 1), torch.bfloat16),
    }
    row: Row = {"kind": "host"}
    for name, step in steps.items():
        best = float("inf")
        with torch.inference_mode():
            step()
            for _ in range(5):
                torch.cuda.synchronize()
                started = time.perf_counter()
                for _ in range(calls):
                    step()
                best = min(best, (time.perf_counter() - started) / calls * 1e6)
        row[f"{name}_us"] = best
    return row


def kernel_sources_sha256() -> str:
    """One hash of the kernel sources, so that results say which kernels they are of."""
    digest = hashlib.sha256()
    for path in sorted([*KERNEL_FOLDER.glob("*.cu"), *KERNEL_FOLDER.glob("*.cuh")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def environment() -> Row:
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvrtc": ".".join(map(str, nvrtc_version())),
        "python": platform.python_version(),
        "commit": commit(),
        "kernel_sources_sha256": kernel_sources_sha256(),
    }


def run_gemv(shapes: Sequence[str], axes: Sequence[str], bands: Sequence[int], out: Path | None) -> None:
    """As `zigpass bench gemv`."""
    parsed = [parse_shape(shape) for shape in shapes] or list(SINGLE_SHAPES)
    bad = [shape for shape, numbers in zip(shapes, parsed, strict=False) if len(numbers) != 2]
    if bad:
        raise ZigpassError(f"{bad} are no matrices; write NxK, and use zigpass bench mlp for MLPs")
    rows_of = [functools.partial(bench_single, n, k) for n, k in parsed]
    run(rows_of, axes, bands, out or RESULTS / "gemv.json")


def run_mlp(names: Sequence[str], axes: Sequence[str], bands: Sequence[int], out: Path | None) -> None:
    """As `zigpass bench mlp`."""
    unknown = [name for name in names if name not in MLP_SHAPES]
    if unknown:
        raise ZigpassError(f"unknown MLP {unknown}, expected of {list(MLP_SHAPES)}")
    rows_of = [functools.partial(bench_mlp, name) for name in names or MLP_SHAPES]
    run(rows_of, axes, bands, out or RESULTS / "mlp.json")


def run(
    shapes: Sequence[Callable[[ScaleAxis, int | None], Iterator[Row]]],
    axes: Sequence[str],
    bands: Sequence[int],
    out: Path,
) -> None:
    """Time shapes, print a line each and write everything to `out`.

    Args:
        shapes: each yields its rows for a scale axis and a band.
        bands: 0 means one band of all rows.
    """
    parsed_axes = [parse_scale_axis(axis) for axis in axes]
    require_gpu()
    torch.manual_seed(0)
    rates = {sparsity: gather_rate(sparsity) for sparsity in SPARSITIES if sparsity is not None}
    results: list[Row] = [{"kind": "gather", "gb_per_s": rates}, bench_host()]
    typer.echo(f"gather limit: {', '.join(f'{rate:.0f} GB/s at {s:.0%}' for s, rate in rates.items())}")
    host = results[1]
    typer.echo(
        f"host: {host['linear_us']:.1f} us a linear, {host['mlp_us']:.1f} us an MLP, {host['qkv_us']:.1f} us a qkv"
        f" (two launches {host['launches_us']:.1f}, an allocation {host['allocate_us']:.1f})"
    )
    for axis in parsed_axes:
        for band in bands:
            for rows_of in shapes:
                rows = add_ratios(list(rows_of(axis, band or None)), rates)
                for row in rows:
                    typer.echo(describe(row))
                results += rows
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
                torch.cuda.empty_cache()
    typer.echo(f"wrote {out}")


def describe(row: Row) -> str:
    sparsity = "dense" if row["sparsity"] is None else f"{row['sparsity']:.0%}"
    ratios = [(f"ratio_{peer}", peer.replace("_", " ")) for peer in PEERS]
    shown = "  ".join(f"{'-' if row[key] is None else f'{row[key]:.2f}x'} {name}" for key, name in ratios)
    evens = ", ".join(
        f"{describe_break_even(row[f'break_even_with_{other}'])} with {other}" for other in ("dense", "tinygemm")
    )
    dense_instead = row["sparsity"] is not None and not all(row["launched_sparse"])
    note = " (launched dense: the table says that sparsity never pays)" if dense_instead else ""
    return (
        f"{row['kind']:4} {row['name']:11} {row['axis']:3} {sparsity:>5} {row['us']:7.2f} us"
        f" {row['active_gb_per_s']:5.0f} GB/s ({row['percent_of_gather']:3.0f} % of gather)"
        f"  {shown}  {row['ratio_dense']:.2f}x dense  break-even {evens}{note}"
    )
