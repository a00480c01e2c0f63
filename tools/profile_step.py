"""Where the microseconds of a decode step go: kernels of a profiler trace, sorted into parts by their names.

And in which order: the launches of one decoder layer, with the time between them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

STEPS: Final = 8
"""Steps in a trace; the parts are their mean."""

NAMES: Final = 24
NAME_LENGTH: Final = 100
"""Characters of a kernel's name that are kept: names of C++ templates are longer than anybody reads."""

LINEAR: Final = ("zigzag", "tinygemm", "gemv", "gemm", "nvjet", "splitk", "cutlass", "cublas")
ATTENTION: Final = ("fmha", "flash", "attention", "softmax", "sdpa", "lean_reduction")
"""Pieces of kernel names, lower case. Attention is looked for first: its kernels are often built with cutlass. The last
one sums up what the blocks of cuDNN's attention leave."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel, or copy or fill of memory, of a trace; microseconds."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        return self.start + self.duration

    @property
    def computes(self) -> bool:
        return not self.name.startswith(("Memcpy", "Memset"))


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a chain.

    Attributes:
        gap: microseconds since the launch before had ended; negative where this one started earlier.
        duration: microseconds, waiting for the one before included.
    """

    name: str
    gap: float
    duration: float


@dataclasses.dataclass(frozen=True)
class Parts:
    """Microseconds of a step by part; together they are the step.

    Kernels overlap where the next one starts before the last has ended, and waits. A part is therefore what its kernels
    add: the time from the end of the kernels before, or from its start where that is later, to its end.

    Attributes:
        attention: scores, softmax and values.
        linears: GEMVs of the decoder layers, with what sums them up.
        head: the last GEMV.
        other: norms, rotary embedding, cache writes, residuals: what Inductor makes of the rest.
        gaps: time in which no kernel ran.
        kernels: launches of a step.
        by_name: launches and microseconds (of their own, waiting included) a step of the kernels that take longest.
        layer: every launch of one layer in the middle of a step, from its attention to the next one's; copies and
            fills of memory too.
    """

    attention: float
    linears: float
    head: float
    other: float
    gaps: float
    kernels: int
    by_name: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    layer: list[Launch] = dataclasses.field(default_factory=list)


def profile_step(step: Callable[[], None]) -> Parts:
    """Trace `STEPS` calls of a step that replays one CUDA graph."""
    from torch.profiler import ProfilerActivity, profile

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    kernels = [kernel for kernel in map(_kernel, trace.events() or ()) if kernel is not None]
    return split(kernels, STEPS)


def _kernel(event: Any) -> Kernel | None:
    if event.device_type != DeviceType.CUDA:
        return None
    return Kernel(event.name, event.time_range.start, event.time_range.elapsed_us())


def split(kernels: Iterable[Kernel], steps: int) -> Parts:
    """Sort the kernels of some equal steps into parts.

    The head is the last linear of a step: its first kernel is the last `gemv` (or its peer's) of the step, and what
    follows it under a linear's name belongs to it.
    """
    every = sorted(kernels, key=lambda kernel: kernel.start)
    ordered = [kernel for kernel in every if kernel.computes]
    per_step = len(ordered) // steps
    sums = dict.fromkeys(("attention", "linears", "head", "other", "gaps"), 0.0)
    for index in range(steps):
        own = ordered[index * per_step : (index + 1) * per_step]
        head = _head(own)
        end = own[0].start if own else 0.0
        for at, kernel in enumerate(own):
            sums["gaps"] += max(0.0, kernel.start - end)
            sums["head" if at in head else part_of(kernel.name)] += max(0.0, kernel.end - max(kernel.start, end))
            end = max(end, kernel.end)
    parts = {name: round(value / steps, 1) for name, value in sums.items()}
    middle = every[len(every) // steps * (steps // 2) :][: len(every) // steps]
    return Parts(**parts, kernels=per_step, by_name=_by_name(ordered, steps), layer=layer_of(middle))


def layer_of(step: list[Kernel]) -> list[Launch]:
    """The launches from one attention to the next in the middle of a step; none where it has fewer than two layers.

    The gap of the first is given as 0.
    """
    attention = [at for at, kernel in enumerate(step) if part_of(kernel.name) == "attention"]
    starts = [at for before, at in zip([-2, *attention], attention, strict=False) if at != before + 1]
    if len(starts) < 2:
        return []
    middle = len(starts) // 2
    layer = step[starts[middle - 1] : starts[middle]]
    gaps = [0.0, *(after.start - before.end for before, after in itertools.pairwise(layer))]
    return [
        Launch(kernel.name[:NAME_LENGTH], round(gap, 2), round(kernel.duration, 2))
        for kernel, gap in zip(layer, gaps, strict=True)
    ]


def _by_name(kernels: list[Kernel], steps: int) -> dict[str, tuple[float, float]]:
    names: dict[str, tuple[float, float]] = {}
    for kernel in kernels:
        name = kernel.name[:NAME_LENGTH]
        count, duration = names.get(name, (0, 0.0))
        names[name] = (count + 1 / steps, duration + kernel.duration / steps)
    longest = sorted(names, key=lambda name: -names[name][1])[:NAMES]
    return {name: (round(names[name][0], 2), round(names[name][1], 1)) for name in longest}


def part_of(name: str) -> str:
    """ "attention", "linears" or "other"."""
    lower = name.lower()
    if any(piece in lower for piece in ATTENTION) and not lower.startswith("triton"):
        return "attention"
    return "linears" if any(piece in lower for piece in LINEAR) and not lower.startswith("triton") else "other"


def _head(kernels: list[Kernel]) -> set[int]:
    linear = [at for at, kernel in enumerate(kernels) if part_of(kernel.name) == "linears"]
    if not linear:
        return set()
    last = linear[-1]
    # A summing kernel follows its GEMV directly.
    summing = any(piece in kernels[last].name.lower() for piece in ("combine", "splitk", "reduce"))
    return {last - 1, last} if summing and last - 1 in linear else {last}
