"""The launches that `zigpass tune` measures."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError
from zigpass.runtime.cuda.compiler import compile_kernel, nvrtc_version
from zigpass.runtime.cuda.device import get_device
from zigpass.runtime.cuda.formats import ACTIVATION_CODES, BF16, NONE
from zigpass.runtime.cuda.gemv import launch_gemv
from zigpass.runtime.cuda.plan import cut_launch, weight_kind
from zigpass.runtime.cuda.specialization import NO_PARTIALS, Gemv, LaunchConfig, Partials
from zigpass.runtime.layout import ScaleAxis
from zigpass.tools.gpu_cases import (
    ROTATED_BYTES,
    MlpCase,
    Weight,
    copies_of,
    graph_time,
    plan_for,
    random_weight,
    threshold_of,
)

REPLAYS = 8


def compile_all(
    weights: Sequence[Weight],
    configs: Iterable[LaunchConfig],
    sparsities: Iterable[float | None],
    x: int,
    out: int,
    middle: Partials = NO_PARTIALS,
) -> None:
    """Compile specializations on all cores, so that measuring does not wait for them one by one."""
    nvrtc_version()  # imports happen here, not in the threads
    kind = weight_kind(weights[0].layout, weights[0].tensors)
    assert kind is not None
    device, layouts = get_device(torch.cuda.current_device()), [weight.layout for weight in weights]
    wanted = [
        Gemv(kind, config, x, out, sparsity is not None, 1, x == NONE, ACTIVATION_CODES["silu"], middle)
        for config in configs
        for sparsity in sparsities
    ]

    def compile_one(gemv: Gemv) -> None:
        try:
            macros = cut_launch(device, gemv, layouts, gemv.config).gemv.macros
        except ZigpassError:
            return  # does not fit; measuring it says so
        compile_kernel("gemv.cu", macros, device.arch)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, wanted))


class SingleCase:
    """One matrix, bf16 in and out."""

    best: LaunchConfig | None = None

    def __init__(self, n: int, k: int, axis: ScaleAxis, band: int | None) -> None:
        self.n, self.k = n, k
        self.weights = copies_of(lambda: random_weight(n, k, axis, band), ROTATED_BYTES)
        self.x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty(1, n, device="cuda", dtype=torch.bfloat16)
        self.threshold = functools.cache(lambda sparsity: threshold_of(self.x, sparsity))

    def compile(self, configs: Sequence[LaunchConfig], sparsity: float) -> None:
        compile_all(self.weights[:1], configs, (sparsity, None), BF16, BF16)

    def time(self, config: LaunchConfig, sparsity: float | None) -> float:
        first, threshold = self.weights[0], self.threshold(sparsity)
        plan = plan_for([first.layout], first.tensors, BF16, BF16, sparsity is not None, config)

        def step(index: int) -> None:
            weight = self.weights[index % len(self.weights)].tensors
            launch_gemv(plan, [weight], [None], threshold, self.x.data_ptr(), [self.out.data_ptr()], 1)

        return graph_time(step, max(32, len(self.weights)), REPLAYS)

    time_alone = time


class UpCase:
    """gate and up of an MLP, timed with the down that reads the partial sums they leave."""

    best: LaunchConfig | None = None

    def __init__(self, hidden: int, middle: int, axis: ScaleAxis, band: int | None) -> None:
        self.mlp = MlpCase(hidden, middle, axis, band)
        self.n, self.k = 2 * self.mlp.gates[0].layout.padded_n, hidden
        self.thresholds = functools.cache(self.mlp.thresholds)

    def compile(self, configs: Sequence[LaunchConfig], sparsity: float) -> None:
        compile_all([self.mlp.gates[0], self.mlp.ups[0]], configs, (sparsity, None), BF16, NONE)

    def time(self, config: LaunchConfig, sparsity: float | None) -> float:
        return self.time_both(config, None, sparsity, sparsity)

    def time_alone(self, config: LaunchConfig, sparsity: float | None) -> float:
        return self.time_both(config, None, sparsity, None)

    def time_both(
        self,
        up: LaunchConfig | None,
        down: LaunchConfig | None,
        up_sparsity: float | None,
        down_sparsity: float | None,
    ) -> float:
        """Microseconds of both launches, each with a sparsity of its own."""
        first = self.thresholds(up_sparsity)[0]
        second = self.thresholds(down_sparsity)[1] if up_sparsity == down_sparsity else self.dense_middle(down_sparsity)
        up_plan, down_plan = self.mlp.plans(up_sparsity is not None, down_sparsity is not None, up, down)

        def both(index: int) -> None:
            self.mlp.run_down(index, down_plan, second, self.mlp.run_up(index, up_plan, first))

        return graph_time(both, 2 * len(self.mlp.gates), REPLAYS)

    def dense_middle(self, sparsity: float | None) -> Tensor | None:
        """The threshold of the middle that a dense gate and up leave."""
        return threshold_of(self.mlp.middle_values, sparsity)


class DownCase:
    """down of an MLP after the fastest gate and up; the whole MLP counts."""

    best: LaunchConfig | None = None

    def __init__(self, up: UpCase) -> None:
        self.up = up
        self.n, self.k = up.mlp.downs[0].layout.padded_n, up.mlp.middle

    def compile(self, configs: Sequence[LaunchConfig], sparsity: float) -> None:
        compile_all(
            self.up.mlp.downs[:1], configs, (sparsity, None), NONE, BF16,
            self.up.mlp.plans(False, False, self.up.best)[0].partials,
        )  # fmt: skip

    def time(self, config: LaunchConfig, sparsity: float | None) -> float:
        return self.up.time_both(self.up.best, config, sparsity, sparsity)

    def time_alone(self, config: LaunchConfig, sparsity: float | None) -> float:
        return self.up.time_both(self.up.best, config, None, sparsity)
