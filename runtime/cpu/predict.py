"""Which columns to read: the list of active input entries, made inside the kernel that uses it."""

from __future__ import annotations

import numpy as np
from numba import uint32, uint64

from .compile import jit
from .memory import bits_of_float, float32_pointer, int32_pointer, load, store, uint32_pointer, uint64_pointer

LARGEST = -1
"""In place of a number of thresholds: the address is that of an int32, how many of the largest entries are active."""
_MAGNITUDE_BITS = 0x7FFFFFFF
"""Of a float32's pattern: without the sign, and ordered as the magnitudes are, with NaN above infinity."""


@jit
def list_active(
    x: np.ndarray, count: int, threshold: int, num_thresholds: int, perm: int, index_address: int, value_address: int
) -> int:
    """Fill the ascending list of columns whose entry of x[0:count] (float32) is active; return its length.

    Entry k is active unless |x_k| < threshold_k, so a NaN is active.

    Args:
        threshold: address of `num_thresholds` float32: 0 (every entry is active), 1 or `count`. Of an int32 when
            `num_thresholds` is `LARGEST`.
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
    if num_thresholds == LARGEST:
        return _list_largest(x, count, np.int64(load(int32_pointer(threshold), uint64(0))), perm, index, value)
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
def _list_largest(x: np.ndarray, count: int, kept: int, perm: int, index: int, value: int) -> int:
    """As `list_active`, for the `kept` entries of largest magnitude; of equal ones the first are taken.

    Args:
        index, value: pointers, as in `list_active`.
    """
    kept = min(kept, count)
    if kept <= 0:
        return 0
    # The pattern of the smallest magnitude that is kept, bit by bit from the highest: the largest pattern that `kept`
    # entries reach. A fixed number of passes without branches, whatever the entries are.
    limit = uint32(0)
    for shift in range(31):
        tried = limit | (uint32(1) << uint32(30 - shift))
        if _count_from(x, count, tried) >= kept:
            limit = tried
    equal = kept - _count_from(x, count, limit + uint32(1))  # how many entries of just this magnitude are kept
    last = 0  # the last of them
    for i in range(count):
        if _pattern(x[uint64(i)]) == limit and equal > 0:
            last = i
            equal -= 1
    order = uint32_pointer(perm)
    active = uint64(0)
    for i in range(uint64(count)):
        k = i if perm == 0 else entry_of(order, i, count)
        entry = x[k]
        pattern = _pattern(entry)
        store(index, active, i)
        store(value, active, entry)
        active += uint64(pattern > limit or (pattern == limit and k <= uint64(last)))
    length: int = np.int64(active)
    return length


@jit
def _count_from(x: np.ndarray, count: int, pattern: int) -> int:
    """How many of the first entries have at least this pattern of magnitude bits."""
    total = uint32(0)
    for i in range(uint64(count)):
        total += uint32(_pattern(x[i]) >= pattern)
    found: int = np.int64(total)
    return found


@jit
def _pattern(entry: float) -> int:
    bits: int = bits_of_float(entry) & uint32(_MAGNITUDE_BITS)
    return bits


@jit
def entry_of(order: int, column: int, count: int) -> int:
    """perm[column]. A permutation needs no bound; with one, whatever else is in the tensor cannot read outside x."""
    entry: int = min(uint64(load(order, column)), uint64(count - 1))
    return entry
