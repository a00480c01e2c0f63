"""Which columns to read: the list of active input entries, made inside the kernel that uses it."""

from __future__ import annotations

import numpy as np
from numba import uint64

from .compile import jit
from .memory import float32_pointer, load, uint32_pointer


@jit
def list_active(
    x: np.ndarray,
    count: int,
    threshold: int,
    num_thresholds: int,
    perm: int,
    active_index: np.ndarray,
    active_value: np.ndarray,
) -> int:
    """Fill the ascending list of columns whose entry of x[0:count] (float32) is active and return its length.

    Entry k is active unless |x_k| < threshold_k, so a NaN is active. Column p reads entry p, or perm[p].

    Args:
        threshold: address of `num_thresholds` float32: 0 (every entry is active), 1 or `count`.
        perm: address of `count` int32, or 0 where the columns are in the order of the entries.
        active_index: uint64 [count + 1], which columns have an active entry.
        active_value: float32 [count + 1], these entries.
    """
    if perm != 0:
        return _list_permuted(x, count, threshold, num_thresholds, perm, active_index, active_value)
    thresholds = float32_pointer(threshold)
    if num_thresholds == 0:
        for i in range(uint64(count)):
            active_index[i] = i
            active_value[i] = x[i]
        return count
    active = uint64(0)
    # Every entry is written and only active ones advance the list: no branch to mispredict. Hence one spare place.
    if num_thresholds == 1:
        shared = load(thresholds, uint64(0))
        for i in range(uint64(count)):
            active_index[active] = i
            active_value[active] = x[i]
            active += uint64(not (abs(x[i]) < shared))
    else:
        for i in range(uint64(count)):
            active_index[active] = i
            active_value[active] = x[i]
            active += uint64(not (abs(x[i]) < load(thresholds, i)))
    length: int = np.int64(active)
    return length


@jit
def _list_permuted(
    x: np.ndarray,
    count: int,
    threshold: int,
    num_thresholds: int,
    perm: int,
    active_index: np.ndarray,
    active_value: np.ndarray,
) -> int:
    thresholds, sources = float32_pointer(threshold), uint32_pointer(perm)
    active = uint64(0)
    for i in range(uint64(count)):
        # A permutation needs no bound; with one, whatever else is in the tensor cannot read outside x.
        source = min(uint64(load(sources, i)), uint64(count - 1))
        active_index[active] = i
        active_value[active] = x[source]
        if num_thresholds == 0:
            active += uint64(1)
        else:
            place = source if num_thresholds > 1 else uint64(0)
            active += uint64(not (abs(x[source]) < load(thresholds, place)))
    length: int = np.int64(active)
    return length
