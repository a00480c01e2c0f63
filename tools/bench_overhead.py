"""What a call of an operator costs on the CPU beside its kernel: `zigpass bench overhead`.

The operators get weights of one row and one column, in lists of as many tensors as those of a model, so that hardly
anything is left for the kernel to do. Timed in turns, in batches: a call as a compiled graph makes it, one through
torch's dispatcher as other code makes it, and the kernel by itself. The first less the last is the overhead of a
compiled graph: checks, the addresses of all tensors, the result's memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zigpass.runtime import GroupScales, QuantizedWeight, pack
from zigpass.runtime.cpu import call as fields
from zigpass.runtime.cpu.bound import bind
from zigpass.runtime.cpu.floats import BFLOAT16
from zigpass.runtime.cpu.record import OUT, RECORD_FIELDS
from zigpass.runtime.cpu.variants import current_variant
from zigpass.runtime.ops import OPS
from zigpass.tools.bench_timing import pin_to

CALLS = 200
"""Calls of a batch; what a batch takes is divided by them."""


def overheads(seconds: float) -> list[dict[str, Any]]:
    """One row per operator: microseconds of a call, of its kernel, the difference of the medians, a dispatched call."""
    with torch.inference_mode():
        candidates = _candidates()
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        for call in candidates.values():
            call()  # the first call of a kernel compiles it
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for name, call in candidates.items():
                begin = time.perf_counter_ns()
                for _ in range(CALLS):
                    call()
                samples[name].append((time.perf_counter_ns() - begin) / 1000 / CALLS)
    rows = []
    for op in OPS:
        direct, dispatched, kernel = (
            statistics.median(samples[f"{op}{part}"]) for part in ("", " dispatched", " kernel")
        )
        rows.append({
            "op": op, "call_us": round(direct, 2), "kernel_us": round(kernel, 2),
            "overhead_us": round(direct - kernel, 2), "dispatched_us": round(dispatched, 2),
        })  # fmt: skip
    return rows


def _candidates() -> dict[str, Callable[[], object]]:
    weights = [_weight() for _ in range(3)]
    tensors = [tensor for weight, _ in weights for tensor in weight]
    lists = [weight for weight, _ in weights]
    specs = [spec for _, spec in weights]
    x, t = torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([0.5])
    ops = torch.ops.zigpass
    arguments: dict[str, tuple[Any, ...]] = {
        "linear": (x, lists[0], None, t, specs[0]),
        "qkv": (x, tensors, [None] * 3, t, specs),
        "gated_mlp": (x, *lists, None, None, None, t, t, *specs, "silu"),
    }
    found: dict[str, Callable[[], object]] = {}
    for op in OPS:
        packet, args = getattr(ops, op), arguments[op]
        for name, call in ((op, packet.direct_cpu), (f"{op} dispatched", packet.default)):
            found[name] = lambda call=call, args=args: call(*args)  # type: ignore[misc]
        found[f"{op} kernel"] = _kernel(op, x, t, lists, specs)
    return found


def _kernel(op: str, x: Tensor, t: Tensor, weights: list[list[Tensor]], specs: list[str]) -> Callable[[], object]:
    """The kernel of an operator without the operator: everything that it needs is made once."""
    weights, specs = (weights[:1], specs[:1]) if op == "linear" else (weights, specs)
    block = bind([tensor for weight in weights for tensor in weight], None, tuple(specs)).new_call()
    variant = current_variant()
    results = torch.empty(len(weights), dtype=torch.float32)
    for i in range(len(weights)):
        block[fields.HEADER_FIELDS + i * RECORD_FIELDS + OUT] = results[i].data_ptr()
    block[fields.X], block[fields.X_DTYPE], block[fields.ROWS] = x.data_ptr(), BFLOAT16, 1
    block[fields.THRESHOLD_IN] = block[fields.THRESHOLD_MID] = t.data_ptr()
    block[fields.NUM_THRESHOLDS_IN] = block[fields.NUM_THRESHOLDS_MID] = 1
    block[fields.DIGITS], block[fields.THREADS] = variant.digits(), 1
    kernel = variant.mlp if op == "gated_mlp" else variant.project
    alive = (x, t, results, weights, block)
    return lambda alive=alive: kernel(alive[-1].buffer_info()[0])  # type: ignore[misc]


def _weight() -> tuple[list[Tensor], str]:
    scales = GroupScales(torch.ones(1, 1).half(), torch.zeros(1, 1, dtype=torch.uint8), "sub_int", 32)
    packed = pack(QuantizedWeight(torch.ones(1, 1, dtype=torch.uint8), 4, scales))
    return list(packed.tensors), packed.layout.spec


def run(core: int, seconds: float) -> None:
    """Pin one thread, measure and print; the options of `zigpass bench overhead` say what the arguments mean."""
    torch.set_num_threads(1)
    pin_to(core)
    show(Console(), overheads(seconds))


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the table of overheads."""
    table = Table("operator", "call us", "kernel us", "overhead us", "dispatched call us")
    fields = ("call_us", "kernel_us", "overhead_us", "dispatched_us")
    for row in rows:
        table.add_row(row["op"], *(f"{row[field]:.1f}" for field in fields))
    console.print(table)
