"""The CPU kernels against the best dense int4 kernels for CPUs, one row of input: `zigpass bench cpu`.

Every candidate of a shape runs in one process, in turns, on one pinned core unless asked otherwise, and with copies of
its weights in rotation. Times are medians with quartiles over the calls during which the system left the core alone.
Peers are onnxruntime's MatMulNBits with accuracy_level=4 (int8 activations) and torch's int4pack (bfloat16
activations), both with groups of 128 (64 where 128 does not divide K) and dense; what is not installed is left out and
said. zigpass runs through its operator, predict and compaction included, with bfloat16 input. Its operators ask Linux
for huge pages for their weights; the peers leave theirs in the pages that the system gives, and are measured so.

Inputs of several rows are compared with two ways to dequantize and multiply: torch's operators over the whole weight
(`runtime/reference.py`), and zigpass's own kernel for inputs of many rows, a piece of the weight at a time.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zigpass.runtime import Layout, ZigpassError, reference
from zigpass.runtime.cpu import available_variants, get_activation_dtype, set_activation_dtype
from zigpass.runtime.cpu.record import weight_plan
from zigpass.runtime.cpu.rows import linear_rows
from zigpass.runtime.layout import round_up
from zigpass.tools import bench_peers as peers
from zigpass.tools.bench_overhead import overheads
from zigpass.tools.bench_overhead import show as show_overheads
from zigpass.tools.bench_timing import Timing, interleave, pin_to
from zigpass.tools.provenance import provenance

LARGE = ((4096, 11008), (11008, 4096), (4096, 14336), (14336, 4096))
SMALL = ((576, 1536), (1536, 576))
MLP = (4096, 11008)
AXES = ("in", "out")
SPARSITIES = (0.0, 0.5)
SEVERAL_ROWS = (2, 4, 8, 16, 24, 32, 64, 128)
SEVERAL_ROWS_SHAPE = (2048, 2048)
MOST_COPIES = 48
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Weight:
    """Random packed weights of one layout, several copies."""

    layout: Layout
    copies: list[list[Tensor]]


def run(
    threads: int, core: int, seconds: float, megabytes: int, activations: str, small: bool, out: Path | None
) -> None:
    """The whole benchmark; the options of `zigpass bench cpu` say what the arguments mean."""
    if activations not in ("float32", "int8"):
        raise ZigpassError(f"activations must be float32 or int8, got {activations!r}")
    torch.set_num_threads(threads)
    if threads == 1:
        pin_to(core)
    set_activation_dtype("int8" if activations == "int8" else "float32")
    console = Console()
    if not peers.has_onnxruntime():
        console.print("onnx and onnxruntime are not installed: measured against torch's int4pack only")
    rows = []
    with torch.inference_mode():
        for k, n in (*SMALL, *(() if small else LARGE)):
            rows += matmul_rows(k, n, seconds, megabytes)
            show(console, rows[-4:])
        if not small:
            rows += mlp_rows(*MLP, seconds, megabytes)
            show(console, rows[-2:])
        several = []
        if threads == 1 and not small:
            for axis in AXES:
                several += several_rows(*SEVERAL_ROWS_SHAPE, axis, seconds)
        show_several(console, several)
    calls = overheads(seconds) if threads == 1 else []
    if calls:
        show_overheads(console, calls)
    report = {
        "machine": machine(), "threads": threads, "seconds": seconds, "megabytes": megabytes, "rows": rows,
        "several_rows": several, "overhead": calls,
    }  # fmt: skip
    name = f"cpu-{platform.machine()}-{available_variants()[0]}-{activations}-{threads}t.json"
    path = out or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"wrote {path}")


def machine() -> dict[str, Any]:
    """Where the numbers come from, and how busy the machine was."""
    return {**provenance(), "kernels": available_variants()[0], "load": [round(x, 2) for x in os.getloadavg()]}


def matmul_rows(k: int, n: int, seconds: float, megabytes: int) -> list[dict[str, Any]]:
    """Rows of the table for one shape: both scale axes, dense and sparse."""
    copies = num_copies(k * n // 2, megabytes)
    candidates: dict[str, Callable[[int], object]] = {"int4pack": peers.torch_int4pack(k, n, copies)}
    if peers.has_onnxruntime():
        candidates["onnxruntime"] = peers.onnxruntime_matmul(k, n, copies)
    x = torch.randn(1, k).bfloat16()
    linear = torch.ops.zigpass.linear.default
    for axis in AXES:
        weight = random_weight(n, k, axis, copies)
        for sparsity in SPARSITIES:
            threshold = threshold_for(x, sparsity)
            candidates[f"{axis} {sparsity}"] = lambda copy, w=weight, t=threshold: linear(  # type: ignore[misc]
                x, w.copies[copy], None, t, w.layout.spec
            )
    timings = interleave(candidates, dict.fromkeys(candidates, copies), seconds)
    return [
        table_row(f"{k}x{n}", axis, sparsity, timings, f"{axis} {sparsity}") for axis in AXES for sparsity in SPARSITIES
    ]


def mlp_rows(k: int, middle: int, seconds: float, megabytes: int) -> list[dict[str, Any]]:
    """Rows of the table for a SwiGLU MLP."""
    copies = max(3, num_copies(3 * k * middle // 2, megabytes))
    candidates: dict[str, Callable[[int], object]] = {"int4pack": peers.torch_int4pack_mlp(k, middle, copies)}
    if peers.has_onnxruntime():
        candidates["onnxruntime"] = peers.onnxruntime_mlp(k, middle, copies)
    gate, up, down = (random_weight(*shape, "in", copies) for shape in ((middle, k), (middle, k), (k, middle)))
    x = torch.randn(1, k).bfloat16()
    specs = (gate.layout.spec, up.layout.spec, down.layout.spec)
    mlp = torch.ops.zigpass.gated_mlp.default

    def weights(copy: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return gate.copies[copy], up.copies[copy], down.copies[copy]

    for sparsity in SPARSITIES:
        t_in = threshold_for(x, sparsity)
        t_mid = None
        if sparsity:
            # The middle of the sparse MLP itself: what reaches the down projection is what is cut at the quantile.
            linear = torch.ops.zigpass.linear.default
            g, u = (linear(x, w.copies[0], None, t_in, w.layout.spec).float() for w in (gate, up))
            t_mid = threshold_for(torch.nn.functional.silu(g) * u, sparsity)
        candidates[f"mlp {sparsity}"] = lambda copy, a=t_in, b=t_mid: mlp(  # type: ignore[misc]
            x, *weights(copy), None, None, None, a, b, *specs, "silu"
        )
    timings = interleave(candidates, dict.fromkeys(candidates, copies), seconds)
    return [table_row(f"MLP {k}-{middle}", "in", s, timings, f"mlp {s}") for s in SPARSITIES]


def several_rows(k: int, n: int, axis: str, seconds: float) -> list[dict[str, Any]]:
    """Rows of the table of inputs with several rows."""
    weight = random_weight(n, k, axis, 1)
    tensors, spec = weight.copies[0], weight.layout.spec
    plan = weight_plan(spec, *[tensor.dtype for tensor in tensors])
    candidates: dict[str, Callable[[int], object]] = {}
    for rows in SEVERAL_ROWS:
        x = torch.randn(rows, k).bfloat16()
        args = (x, tensors, None, None, spec)
        candidates[f"zigpass {rows}"] = lambda _, args=args: torch.ops.zigpass.linear.default(*args)  # type: ignore[misc]
        candidates[f"torch {rows}"] = lambda _, args=args: reference.linear(*args)  # type: ignore[misc]
        candidates[f"pieces {rows}"] = lambda _, x=x: linear_rows(x.float(), tensors, None, plan).to(x.dtype)  # type: ignore[misc]
    timings = interleave(candidates, dict.fromkeys(candidates, 1), seconds)
    found = []
    for rows in SEVERAL_ROWS:
        times = {name: timings[f"{name} {rows}"] for name in ("zigpass", "pieces", "torch")}
        best = min(times["pieces"].median, times["torch"].median)
        row = {"shape": f"{k}x{n}", "scale_axis": axis, "rows": rows, "ratio": round(best / times["zigpass"].median, 2)}
        found.append({**row, **{f"{name}_us": dataclasses.asdict(timing) for name, timing in times.items()}})
    return found


def show_several(console: Console, several: list[dict[str, Any]]) -> None:
    """Print the table of inputs with several rows."""
    table = Table("shape", "scales", "rows", "zigpass us", "dequantize in pieces us", "torch us", "ratio to best")
    for row in several:
        times = [f"{row[f'{name}_us']['median']:.0f}" for name in ("zigpass", "pieces", "torch")]
        table.add_row(row["shape"], row["scale_axis"], str(row["rows"]), *times, f"{row['ratio']:.2f}")
    if several:
        console.print(table)


def table_row(shape: str, axis: str, sparsity: float, timings: dict[str, Timing], ours: str) -> dict[str, Any]:
    """One row: our time, the peers' and the ratio to the best of them."""
    dense = {name: timings[name] for name in ("onnxruntime", "int4pack") if name in timings}
    best = min(dense, key=lambda name: dense[name].median)
    return {
        "shape": shape,
        "scale_axis": axis,
        "sparsity": sparsity,
        "activations": get_activation_dtype(),
        "zigpass_us": dataclasses.asdict(timings[ours]),
        "peers_us": {name: dataclasses.asdict(timing) for name, timing in dense.items()},
        "best_peer": best,
        "ratio": round(dense[best].median / timings[ours].median, 2),
    }


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    labels = f"activations: zigpass {rows[0]['activations']}, onnxruntime int8, int4pack bfloat16"
    table = Table(
        "shape", "scales", "sparsity", "zigpass us", "onnxruntime us", "int4pack us", "ratio to best", title=labels
    )
    for row in rows:
        times = (row["zigpass_us"], *(row["peers_us"].get(name) for name in ("onnxruntime", "int4pack")))
        cells = ["-" if t is None else f"{t['median']:.0f} ({t['low']:.0f}-{t['high']:.0f})" for t in times]
        table.add_row(row["shape"], row["scale_axis"], f"{row['sparsity']:.0%}", *cells, f"{row['ratio']:.2f}")
    console.print(table)


def num_copies(weight_bytes: int, megabytes: int) -> int:
    return max(3, min(MOST_COPIES, (megabytes << 20) // weight_bytes))


def threshold_for(x: Tensor, sparsity: float) -> Tensor | None:
    """The threshold below which this share of the entries lies."""
    return x.float().abs().quantile(sparsity).reshape(1) if sparsity else None


def random_weight(n: int, k: int, axis: str, copies: int) -> Weight:
    """Random codes with scales along the inputs (groups as the peers have them) or along the outputs."""
    padded = round_up(n, 128)
    if axis == "in":
        layout = Layout(n, k, 4, "in", peers.group_size(k), "sub_int", padded)
        scale = (torch.rand(layout.num_scales) * 0.01).half()
        scales = [scale, torch.randint(6, 10, scale.shape, dtype=torch.uint8)]
    else:
        layout = Layout(n, k, 4, "out", 32, "column", padded)
        records = torch.randint(-(2**31), 2**31 - 1, (layout.num_scales // 4, 4), dtype=torch.int32)
        records[:, 0] = 0x12001200  # d and dmin of 0.0007
        scales = [records.flatten()]
    codes = torch.randint(-(2**31), 2**31 - 1, (layout.num_code_words,), dtype=torch.int32)
    gc.collect()
    return Weight(layout, [[codes.clone(), *(scale.clone() for scale in scales)] for _ in range(copies)])
