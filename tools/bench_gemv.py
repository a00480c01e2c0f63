"""Times the CUDA kernels against torch's int4 GEMV and against what the memory can do, in one run.

    python -m zigpass.tools.bench_gemv --out tools/results/gemv.json
    python -m zigpass.tools.bench_gemv --sweep --out sweep.json

Every number is the median over replays of a CUDA graph that goes through several copies of the weights, more than the
L2 cache holds; predict and compaction are part of it. Bytes are the ones that must move: active columns, all scales.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zigpass.runtime.cuda.compiler import nvrtc_version
from zigpass.runtime.cuda.formats import ACTIVATION_CODES, BF16, NONE
from zigpass.runtime.cuda.gemv import launch_gemv
from zigpass.runtime.cuda.plan import Plan, chain, get_plan, weight_kind
from zigpass.runtime.cuda.specialization import LaunchConfig
from zigpass.runtime.layout import Layout

MLP_SHAPES = {"7B": (4096, 11008), "8B": (4096, 14336), "70B": (8192, 28672)}
SINGLE_SHAPES = ((4096, 4096), (6144, 4096), (4096, 14336), (14336, 4096), (8192, 8192))
SPARSITIES = (None, 0.0, 0.25, 0.5)
ROTATED_BYTES = 400 << 20
"""Weights that one graph reads: several times the L2 of any GPU so far (60 MB on an H200, 126 MB on a B200)."""


@dataclasses.dataclass
class Weight:
    """A random packed weight with a scale axis "in" and group 128, or "out"."""

    layout: Layout
    tensors: list[Tensor]

    @property
    def code_bytes(self) -> int:
        return self.tensors[0].numel() * 4

    @property
    def scale_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors[1:])


def random_weight(n: int, k: int, axis: str, band: int | None) -> Weight:
    padded = -(-n // 128) * 128
    if axis == "in":
        layout = Layout(n, k, 4, "in", 128, "sub_int", padded).with_band(band)
    else:
        layout = Layout(n, k, 4, "out", 32, "column", padded).with_band(band)
    codes = torch.randint(-(2**31), 2**31 - 1, (layout.num_code_words,), dtype=torch.int32, device="cuda")
    if axis == "in":
        scale = (torch.rand(layout.num_scales, device="cuda") * 0.01 + 0.005).half()
        return Weight(layout, [codes, scale, torch.randint(6, 10, scale.shape, dtype=torch.uint8, device="cuda")])
    records = torch.randint(-(2**31), 2**31 - 1, (layout.num_scales // 4, 4), dtype=torch.int32, device="cuda")
    records[:, 0] = 0x12001200  # d and dmin of 0.0007
    return Weight(layout, [codes, records.flatten()])


def graph_time(step: Callable[[int], object], calls: int, replays: int = 30) -> float:
    """Median microseconds of a call, over replays of a graph of step(0) .. step(calls - 1)."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(calls):
            step(index)
    for _ in range(3):
        graph.replay()
    times: list[float] = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) * 1e3 / calls)
    return statistics.median(times)


def copies_of(make: Callable[[], Weight], num_bytes: int) -> list[Weight]:
    first = make()
    count = max(2, -(-num_bytes // (first.code_bytes + first.scale_bytes)))
    rest = [Weight(first.layout, [tensor.clone() for tensor in first.tensors]) for _ in range(count - 1)]
    return [first, *rest]


def threshold_of(values: Tensor, sparsity: float | None) -> Tensor | None:
    if sparsity is None:
        return None
    if sparsity == 0:
        return torch.zeros(1, device="cuda")
    return values.abs().float().flatten().quantile(sparsity).reshape(1)


def tinygemm(n: int, k: int) -> Callable[[int, Tensor], Tensor]:
    """torch's own int4 GEMV, group 128, over enough copies of a weight."""
    packed = torch.ops.aten._convert_weight_to_int4pack(
        torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda"), 8
    )
    scales = torch.full((k // 128, n, 2), 0.01, dtype=torch.bfloat16, device="cuda")
    count = max(2, -(-ROTATED_BYTES // (packed.numel() * 4)))
    copies = [(packed.clone(), scales.clone()) for _ in range(count)]

    def call(index: int, x: Tensor) -> Tensor:
        weight, scale = copies[index % count]
        result: Tensor = torch.ops.aten._weight_int4pack_mm(x, weight, 128, scale)
        return result

    return call


def plan_for(
    layouts: list[Layout],
    tensors: list[Tensor],
    x_format: int,
    out_format: int,
    sparse: bool,
    config: LaunchConfig | None,
) -> Plan:
    kind = weight_kind(layouts[0], tensors)
    assert kind is not None
    specs = tuple(layout.spec for layout in layouts)
    return get_plan(0, kind, specs, x_format, out_format, sparse, 1, x_format == NONE, ACTIVATION_CODES["silu"], config)


@dataclasses.dataclass
class MlpCase:
    """gate, up and down of one size in enough copies."""

    hidden: int
    middle: int
    axis: str
    band: int | None

    def __post_init__(self) -> None:
        each = ROTATED_BYTES // 3
        self.gates = copies_of(lambda: random_weight(self.middle, self.hidden, self.axis, self.band), each)
        self.ups = copies_of(lambda: random_weight(self.middle, self.hidden, self.axis, self.band), each)
        self.downs = copies_of(lambda: random_weight(self.hidden, self.middle, self.axis, self.band), each)
        self.x = torch.randn(1, self.hidden, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty(1, self.hidden, device="cuda", dtype=torch.bfloat16)
        gate, up = (
            torch.ops.zigpass.linear(self.x.float(), part[0].tensors, None, None, part[0].layout.spec)
            for part in (self.gates, self.ups)
        )
        self.middle_values = torch.nn.functional.silu(gate) * up

    def thresholds(self, sparsity: float | None) -> tuple[Tensor | None, Tensor | None]:
        first = threshold_of(self.x, sparsity)
        if not sparsity:
            return first, first
        gate, up = (
            torch.ops.zigpass.linear(self.x.float(), part[0].tensors, None, first, part[0].layout.spec)
            for part in (self.gates, self.ups)
        )
        return first, threshold_of(torch.nn.functional.silu(gate) * up, sparsity)

    def plans(
        self, sparse: bool, up_config: LaunchConfig | None = None, down_config: LaunchConfig | None = None
    ) -> tuple[Plan, Plan]:
        layouts = [self.gates[0].layout, self.ups[0].layout]
        up = plan_for(layouts, self.gates[0].tensors, BF16, NONE, sparse, up_config)
        down = plan_for([self.downs[0].layout], self.downs[0].tensors, NONE, BF16, sparse, down_config)
        return up, chain(down, up, (layouts[0].band, layouts[1].band))

    def run_up(self, index: int, plan: Plan, threshold: Tensor | None) -> Tensor:
        weights = [part[index % len(part)].tensors for part in (self.gates, self.ups)]
        return launch_gemv(plan, weights, [None, None], threshold, self.x.data_ptr(), [0, 0], 1)

    def run_down(self, index: int, plan: Plan, threshold: Tensor | None, partials: Tensor) -> None:
        weight = self.downs[index % len(self.downs)].tensors
        launch_gemv(plan, [weight], [None], threshold, 0, [self.out.data_ptr()], 1, (partials, None, None))

    def active_bytes(self, sparsity: float | None) -> int:
        parts = (self.gates[0], self.ups[0], self.downs[0])
        active = 1 - (sparsity or 0.0)
        scale = 1.0 if self.axis == "in" else active
        return int(sum(part.code_bytes * active + part.scale_bytes * scale for part in parts))

    def time(self, sparsity: float | None, plans: tuple[Plan, Plan]) -> dict[str, float]:
        first, second = self.thresholds(sparsity)
        up, down = plans
        partials = self.run_up(0, up, first)

        def both(index: int) -> None:
            self.run_down(index, down, second, self.run_up(index, up, first))

        calls = 2 * len(self.gates)
        return {
            "mlp_us": graph_time(both, calls),
            "up_us": graph_time(lambda index: self.run_up(index, up, first), calls),
            "down_us": graph_time(lambda index: self.run_down(index, down, second, partials), calls),
        }


def bench_mlp(name: str, axis: str, band: int | None) -> Iterator[dict[str, Any]]:
    hidden, middle = MLP_SHAPES[name]
    peer_up, peer_down = tinygemm(2 * middle, hidden), tinygemm(hidden, middle)
    x = torch.randn(1, hidden, device="cuda", dtype=torch.bfloat16)
    m = torch.randn(1, middle, device="cuda", dtype=torch.bfloat16)
    peer = graph_time(lambda index: (peer_up(index, x), peer_down(index, m)), 16)
    case = MlpCase(hidden, middle, axis, band)
    for sparsity in SPARSITIES:
        plans = case.plans(sparsity is not None)
        times = case.time(sparsity, plans)
        bytes_read = case.active_bytes(sparsity)
        yield {
            "kind": "mlp", "name": name, "axis": axis, "band": band, "sparsity": sparsity, "tinygemm_us": peer, **times,
            "ratio": peer / times["mlp_us"], "active_gb_per_s": bytes_read / times["mlp_us"] / 1e3,
            "up_config": dataclasses.asdict(plans[0].gemv.config),
            "down_config": dataclasses.asdict(plans[1].gemv.config),
        }  # fmt: skip


def bench_single(n: int, k: int, axis: str, band: int | None) -> Iterator[dict[str, Any]]:
    peer = tinygemm(n, k)
    x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)
    peer_us = graph_time(lambda index: peer(index, x), 32)
    weights = copies_of(lambda: random_weight(n, k, axis, band), ROTATED_BYTES)
    for sparsity in SPARSITIES:
        threshold = threshold_of(x, sparsity)

        def step(index: int, threshold: Tensor | None = threshold) -> Tensor:
            weight = weights[index % len(weights)]
            result: Tensor = torch.ops.zigpass.linear(x, weight.tensors, None, threshold, weight.layout.spec)
            return result

        us = graph_time(step, max(32, len(weights)))
        active = 1 - (sparsity or 0.0)
        scale_share = 1.0 if axis == "in" else active
        bytes_read = weights[0].code_bytes * active + weights[0].scale_bytes * scale_share
        yield {
            "kind": "gemv", "n": n, "k": k, "axis": axis, "band": band, "sparsity": sparsity, "tinygemm_us": peer_us,
            "us": us, "ratio": peer_us / us, "active_gb_per_s": bytes_read / us / 1e3,
        }  # fmt: skip


def candidates(axis: str) -> list[LaunchConfig]:
    """Launch parameters that fill the registers of a multiprocessor: 16 warps of 128, or 12 of 168."""
    warps, depths = ((16,), (2,)) if axis == "in" else ((8, 12, 16), (1, 2))
    grid = itertools.product((1, 2, 4), (1, 2, 3, 4, 6, 8), (1, 2, 3, 4), depths)
    return [
        LaunchConfig(row_warps, column_warps, blocks, depth)
        for row_warps, column_warps, blocks, depth in grid
        if row_warps * column_warps * blocks in warps and row_warps * column_warps >= 4
    ]


def sweep_mlp(name: str, axis: str, band: int | None, sparsity: float | None) -> Iterator[dict[str, Any]]:
    """Times of gate+up and of down over launch parameters."""
    case = MlpCase(*MLP_SHAPES[name], axis, band)
    first, second = case.thresholds(sparsity)
    calls = 2 * len(case.gates)
    default_up, _ = case.plans(sparsity is not None)
    partials = case.run_up(0, default_up, first)
    for config in candidates(axis):
        up, _ = case.plans(sparsity is not None, config, config)
        _, down = case.plans(sparsity is not None, None, config)
        yield {
            "kind": "sweep", "name": name, "axis": axis, "band": band, "sparsity": sparsity,
            "config": dataclasses.asdict(config),
            "up_us": graph_time(functools.partial(case.run_up, plan=up, threshold=first), calls, 10),
            "down_us": graph_time(
                functools.partial(case.run_down, plan=down, threshold=second, partials=partials), calls, 10
            ),
        }  # fmt: skip


def sweep_single(n: int, k: int, axis: str, band: int | None, sparsity: float | None) -> Iterator[dict[str, Any]]:
    """Times of one GEMV over launch parameters."""
    weights = copies_of(lambda: random_weight(n, k, axis, band), ROTATED_BYTES)
    x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(1, n, device="cuda", dtype=torch.bfloat16)
    threshold = threshold_of(x, sparsity)
    for config in candidates(axis):
        plan = plan_for([weights[0].layout], weights[0].tensors, BF16, BF16, sparsity is not None, config)

        def step(index: int, plan: Plan = plan) -> None:
            weight = weights[index % len(weights)].tensors
            launch_gemv(plan, [weight], [None], threshold, x.data_ptr(), [out.data_ptr()], 1)

        yield {
            "kind": "sweep gemv", "n": n, "k": k, "axis": axis, "band": band, "sparsity": sparsity,
            "config": dataclasses.asdict(config), "us": graph_time(step, max(32, len(weights)), 10),
        }  # fmt: skip


def bench_host(calls: int = 2000) -> dict[str, Any]:
    """Microseconds that the host spends on an op call outside a graph, the GPU kept far behind."""
    case = MlpCase(1024, 2816, "in", None)
    weight = case.downs[0]
    x, threshold = torch.randn(1, 2816, device="cuda", dtype=torch.bfloat16), torch.zeros(1, device="cuda")
    parts = [part[0] for part in (case.gates, case.ups, case.downs)]
    tensors, specs = [part.tensors for part in parts], [part.layout.spec for part in parts]
    operands: tuple[Any, ...] = (*tensors, None, None, None, threshold, threshold, *specs, "silu")

    def linear() -> None:
        torch.ops.zigpass.linear(x, weight.tensors, None, threshold, weight.layout.spec)

    def mlp() -> None:
        torch.ops.zigpass.gated_mlp(case.x, *operands)

    row: dict[str, Any] = {"kind": "host"}
    for step in (linear, mlp):
        torch.inference_mode()(step)()
        best = float("inf")
        for _ in range(5):
            torch.cuda.synchronize()
            started = time.perf_counter()
            with torch.inference_mode():
                for _ in range(calls // 20):
                    step()
            best = min(best, (time.perf_counter() - started) / (calls // 20) * 1e6)
        row[f"{step.__name__}_us"] = best
    return row


def environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvrtc": ".".join(map(str, nvrtc_version())),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sweep", action="store_true", help="time gate+up and down over launch parameters")
    parser.add_argument("--names", nargs="*", default=list(MLP_SHAPES))
    parser.add_argument("--axes", nargs="*", default=["in", "out"])
    parser.add_argument("--bands", nargs="*", type=int, default=[1024], help="0 means one band")
    parser.add_argument("--sparsities", nargs="*", type=float, default=[0.5], help="of the sweep")
    parser.add_argument("--singles", action=argparse.BooleanOptionalAction, default=True, help="single GEMVs too")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = []

    def note(row: dict[str, Any]) -> None:
        results.append(row)
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        if options.out:
            options.out.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")

    if not options.sweep:
        note(bench_host())
    for axis, band in itertools.product(options.axes, options.bands):
        for name in options.names:
            if options.sweep:
                for sparsity in options.sparsities:
                    for row in sweep_mlp(name, axis, band or None, sparsity):
                        note(row)
            else:
                for row in bench_mlp(name, axis, band or None):
                    note(row)
            torch.cuda.empty_cache()
        for n, k in SINGLE_SHAPES if options.singles else ():
            if options.sweep:
                for sparsity in options.sparsities:
                    for row in sweep_single(n, k, axis, band or None, sparsity):
                        note(row)
            else:
                for row in bench_single(n, k, axis, band or None):
                    note(row)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
