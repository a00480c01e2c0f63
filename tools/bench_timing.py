"""Timing several candidates fairly: interleaved in one process, weights rotated past the caches, medians."""

from __future__ import annotations

import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping

LEAST_SAMPLES = 15


def pin_to(core: int) -> None:
    """Keep this process on one of its usable cores, where the system can; -1 is the last."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds of a call: the median and the quartiles over all samples."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: list[float]) -> Timing:
        low, median, high = statistics.quantiles(samples, n=4)
        return Timing(round(median, 1), round(low, 1), round(high, 1))


def interleave(
    candidates: Mapping[str, Callable[[int], object]], copies: Mapping[str, int], seconds: float
) -> dict[str, Timing]:
    """Time candidates in turns, a few calls each, for `seconds` or until all have enough samples.

    A call during which the system gave the core to another process is not counted. Call i of a candidate uses its copy
    i modulo `copies` of the weights, so what one call reads has left the caches when it is read again, as long as the
    copies are larger than the caches together.

    Args:
        candidates: what to call with the number of a copy.
    """
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    position = dict.fromkeys(candidates, 0)
    for name, call in candidates.items():
        for copy in range(copies[name]):  # the first call of each copy checks it and may move its memory
            call(copy)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or min(map(len, samples.values())) < LEAST_SAMPLES:
        for name, call in candidates.items():
            # The first call of a turn is not counted: the one before it belonged to another candidate.
            for index in range(9):
                switches = _preemptions()
                begin = time.perf_counter_ns()
                call(position[name] % copies[name])
                end = time.perf_counter_ns()
                position[name] += 1
                if index and _preemptions() == switches:
                    samples[name].append((end - begin) / 1000)
    return {name: Timing.of(values) for name, values in samples.items()}


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
