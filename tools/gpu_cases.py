"""Weights and launches on a GPU, in more copies than the L2 holds: what `zigpass bench` and `zigpass tune` time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError
from zigpass.runtime.cuda.formats import ACTIVATION_CODES, BF16, NONE
from zigpass.runtime.cuda.gemv import launch_gemv
from zigpass.runtime.cuda.plan import Plan, chain, get_plan, weight_kind
from zigpass.runtime.cuda.specialization import NO_PARTIALS, LaunchConfig, Partials
from zigpass.runtime.layout import Layout, ScaleAxis

ROTATED_BYTES = 400 << 20
"""Weights that one graph reads: several times the L2 of any GPU so far (60 MB on an H200, 126 MB on a B200)."""


def require_gpu() -> None:
    """Raise `ZigpassError` when there is no GPU to measure."""
    if not torch.cuda.is_available():
        raise ZigpassError("this measures a CUDA GPU, and torch sees none; zigpass bench cpu measures the processor")


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


def random_weight(n: int, k: int, axis: ScaleAxis, band: int | None) -> Weight:
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
    middle: Partials = NO_PARTIALS,
) -> Plan:
    kind = weight_kind(layouts[0], tensors)
    assert kind is not None
    specs = tuple(layout.spec for layout in layouts)
    return get_plan(
        0, kind, specs, x_format, out_format, sparse, 1, x_format == NONE, ACTIVATION_CODES["silu"], middle, config
    )


@dataclasses.dataclass
class MlpCase:
    """gate, up and down of one size in enough copies."""

    hidden: int
    middle: int
    axis: ScaleAxis
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
        self,
        sparse_up: bool,
        sparse_down: bool,
        up_config: LaunchConfig | None = None,
        down_config: LaunchConfig | None = None,
    ) -> tuple[Plan, Plan]:
        """gate and up, then down."""
        layouts = [self.gates[0].layout, self.ups[0].layout]
        up = plan_for(layouts, self.gates[0].tensors, BF16, NONE, sparse_up, up_config)
        down = plan_for(
            [self.downs[0].layout], self.downs[0].tensors, NONE, BF16, sparse_down, down_config, up.partials
        )
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
            "us": graph_time(both, calls),
            "up_us": graph_time(lambda index: self.run_up(index, up, first), calls),
            "down_us": graph_time(lambda index: self.run_down(index, down, second, partials), calls),
        }
