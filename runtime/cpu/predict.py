"""Which columns to read: the list of active input entries, made inside the kernel that uses it."""

from __future__ import annotations

import numpy as np
from numba import uint64

from .compile import jit
from .memory import float32_pointer, load, store, uint32_pointer, uint64_pointer


@jit
def list_active(
    x: np.ndarray, count: int, threshold: int, num_thresholds: int, perm: int, index_address: int, value_address: int
) -> int:
    """Fill the ascending list of columns whose entry of x[0:count] (float32) is active; return its length.

    Entry k is active unless |x_k| < threshold_k, so a NaN is active.

    Args:
        threshold: address of `num_thresholds` float32: 0 (every entry is active), 1 or `count`.
        perm: address of int32 [count], column p holds entry perm[p]; 0 when columns and entries are in one order.
        index_address: of uint64 [count + 1], which columns are active.
        value_address: of float32 [count + 1], their entries.
    """
    thresholds = float32_pointer(threshold)
    order = uint32_pointer(perm)
    index, value = uint64_pointer(index_address), float32_pointer(value_address)
    if num_thresholds == 0:
        for i in range(uint64(count)):
            store(index, i, i)
        for i in range(uint64(count)):
            store(value, i, x[i if perm == 0 else entry_of(order, i, count)])
        return count
    active = uint64(0)
    shared = load(thresholds, uint64(0))
    # Every entry is written and only active ones advance the list: no branch to mispredict. Hence one spare place.
    if num_thresholds == 1 and perm == 0:
        for i in range(uint64(count)):
            store(index, active, i)
            store(value, active, x[i])
            active += uint64(not (abs(x[i]) < shared))
    else:
        for i in range(uint64(count)):
            k = i if perm == 0 else entry_of(order, i, count)
            entry = x[k]
            limit = shared if num_thresholds == 1 else load(thresholds, k)
            store(index, active, i)
            store(value, active, entry)
            active += uint64(not (abs(entry) < limit))
    length: int = np.int64(active)
    return length


@jit
def entry_of(order: int, column: int, count: int) -> int:
    """perm[column]. A permutation needs no bound; with one, whatever else is in the tensor cannot read outside x."""
    entry: int = min(uint64(load(order, column)), uint64(count - 1))
    return entry
