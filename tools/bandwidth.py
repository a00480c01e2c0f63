"""How fast this device reads memory: the bound of decoding."""

from __future__ import annotations

import time

import torch

NUM_BYTES = 256 << 20
"""Past every cache."""
COLUMNS = 4096
NUM_RUNS = 8


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second that a float32 GEMV over 256 MB reads at best, with torch's present threads.

    Sums, maxima and copies of torch are slower on CPUs: 5.6, 5.5 and 5.9 GB/s where the GEMV read 6.5 on two cores.
    """
    data, x = torch.ones(NUM_BYTES // 4 // COLUMNS, COLUMNS, device=device), torch.ones(COLUMNS, device=device)
    times = []
    for _ in range(NUM_RUNS):
        _synchronize(device)
        start = time.perf_counter()
        torch.mv(data, x)
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return NUM_BYTES / min(times)  # a bound: what else runs on the machine only makes a run slower


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
