"""What a weight multiplies: the list of active columns, and the inputs in the form that the kernels take.

An *inputs block* is a row of int64 (addresses and sizes) with the fields below. It serves every weight that stores its
columns in the same order and, for the integer kernels, in the same groups; `reusable` says when that is so.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import float32, uint32, uint64

from .compile import jit
from .fixed_point import FLOAT32_DIGITS, LARGEST, SMALLEST, inverse_of, unit_of, write_chunk_1, write_chunk_3
from .memory import (
    address_of,
    bits_of_float,
    float32_pointer,
    float_of_bits,
    int32_pointer,
    int64_pointer,
    keep,
    load,
    offset_float32,
    offset_uint32,
    store,
    uint32_pointer,
    uint64_pointer,
)
from .predict import entry_of, list_active
from .record import COLUMN_SCALES, GROUP_SIZE, PERM, ZERO_KIND, K

COUNT: Final = 0
"""Active columns."""
INDEX: Final = 1
"""Address of uint64 [COUNT], the active columns, ascending."""
VALUES: Final = 2
"""Address of float32 [ROWS, STRIDE], the inputs of the active columns."""
STRIDE: Final = 3
ROWS: Final = 4
DIGITS: Final = 5
"""Digits of an input, see fixed_point.py; 0 for the kernels that multiply floats."""
CHUNKS: Final = 6
"""Address of uint32 [ROWS, CHUNK_STRIDE], the digits of all chunks (scales along the inputs)."""
CHUNK_STRIDE: Final = 7
GROUPS: Final = 8
"""Groups that have active columns (scales along the inputs)."""
GROUP_PLACES: Final = 9
"""Address of int64 [GROUPS, 4]: group, first entry, end entry, first chunk."""
GROUP_VALUES: Final = 10
"""Address of float32 [ROWS, GROUPS, 8]: the unit four times, then the sum of the group's inputs."""
EXACT: Final = 11
"""1 when some input is not finite, or so large or small that only the exact path is right."""
INPUT_FIELDS: Final = 12

PLACE_FIELDS: Final = 4
VALUE_FIELDS: Final = 8
_SLACK: Final = 4  # entries that a chunk of the last group may read past the end
_WORDS_PER_DIGIT: Final = 4


@jit
def inputs_size(record: int, rows: int, digits: int) -> int:
    """Upper bound of the bytes that `fill_inputs` takes, a multiple of 8."""
    k = load(record, uint64(K))
    groups = _num_groups(record)
    chunks = k // 4 + groups + 1
    size = 8 * INPUT_FIELDS + 8 * (k + 2) + 4 * rows * (k + 2 * _SLACK) + 8 * PLACE_FIELDS * groups
    size += 4 * rows * (VALUE_FIELDS * groups + digits * _WORDS_PER_DIGIT * chunks)
    rounded: int = np.int64(size + 64) // 8 * 8
    return rounded


@jit
def reusable(record: int, other: int) -> bool:
    """Whether the inputs block of one weight fits another weight with the same input."""
    same = True
    for field in (K, PERM, ZERO_KIND, GROUP_SIZE):
        same = same and load(record, uint64(field)) == load(other, uint64(field))
    return same


@jit
def fill_inputs(
    record: int, x: np.ndarray, rows: int, threshold: int, num_thresholds: int, digits: int, block_address: int
) -> None:
    """Make the inputs block of a weight at `block_address`, where `inputs_size` bytes are free.

    Args:
        x: float32 [rows * K], the inputs in the caller's order.
        threshold: address of `num_thresholds` float32: 0, 1 or K; none when there is more than one row.
    """
    k = load(record, uint64(K))
    block = int64_pointer(block_address)
    index_address = block_address + 8 * INPUT_FIELDS
    values_address = index_address + 8 * (k + 2)
    stride = k + 2 * _SLACK
    places_address = (values_address + 4 * rows * stride + 7) // 8 * 8
    perm = load(record, uint64(PERM))
    count = list_active(x, k, threshold, num_thresholds, perm, index_address, values_address)
    _other_rows(x, k, rows, perm, values_address, stride)
    store(block, uint64(COUNT), count)
    store(block, uint64(INDEX), index_address)
    store(block, uint64(VALUES), values_address)
    store(block, uint64(STRIDE), stride)
    store(block, uint64(ROWS), rows)
    store(block, uint64(DIGITS), digits)
    exact = 0
    for row in range(rows):
        if _needs_exact(values_address + 4 * row * stride, count, digits):
            exact = 1
    store(block, uint64(EXACT), exact)
    store(block, uint64(GROUPS), 0)
    if digits != 0 and exact == 0 and load(record, uint64(ZERO_KIND)) != COLUMN_SCALES:
        _fill_groups(record, block_address, places_address)


@jit
def _num_groups(record: int) -> int:
    group_size = load(record, uint64(GROUP_SIZE))
    groups: int = (load(record, uint64(K)) + group_size - 1) // group_size
    return groups


@jit
def _other_rows(x: np.ndarray, k: int, rows: int, perm: int, values_address: int, stride: int) -> None:
    """Copy rows 1 and up, which are dense like row 0, in the order of the columns."""
    values = float32_pointer(values_address)
    order = uint32_pointer(perm)
    for row in range(1, rows):
        target, source = uint64(row * stride), uint64(row * k)
        for i in range(uint64(k)):
            store(values, target + i, x[source + (i if perm == 0 else entry_of(order, i, k))])


@jit
def _needs_exact(values_address: int, count: int, digits: int) -> bool:
    values = float32_pointer(values_address)
    largest = uint32(0)
    for i in range(uint64(count)):
        largest = max(largest, uint32(bits_of_float(load(values, i)) & uint32(0x7FFFFFFF)))
    needed: bool = largest >= uint32(0x7F800000)
    if digits != 0 and largest != 0:
        needed = largest > bits_of_float(float32(LARGEST)) or largest < bits_of_float(float32(SMALLEST))
    return needed


@jit
def _fill_groups(record: int, block_address: int, places_address: int) -> None:
    """Cut the active columns into the weight's groups and turn the inputs of each group into integers."""
    block = int64_pointer(block_address)
    count, rows = load(block, uint64(COUNT)), load(block, uint64(ROWS))
    digits, stride = load(block, uint64(DIGITS)), load(block, uint64(STRIDE))
    index = uint64_pointer(load(block, uint64(INDEX)))
    places = int64_pointer(places_address)
    group_size = load(record, uint64(GROUP_SIZE))
    groups, chunk, start = 0, 0, 0
    while start < count:
        group = np.int64(load(index, uint64(start))) // group_size
        limit = uint64((group + 1) * group_size)
        end = start
        while end < count and load(index, uint64(end)) < limit:
            end += 1
        at = uint64(groups * PLACE_FIELDS)
        store(places, at, group)
        store(places, at + uint64(1), start)
        store(places, at + uint64(2), end)
        store(places, at + uint64(3), chunk)
        chunk += (end - start + 3) // 4
        groups += 1
        start = end
    values_address = places_address + 8 * PLACE_FIELDS * groups
    chunks_address = values_address + 4 * rows * VALUE_FIELDS * groups
    chunk_stride = chunk * digits * _WORDS_PER_DIGIT
    store(block, uint64(GROUPS), groups)
    store(block, uint64(GROUP_PLACES), places_address)
    store(block, uint64(GROUP_VALUES), values_address)
    store(block, uint64(CHUNKS), chunks_address)
    store(block, uint64(CHUNK_STRIDE), chunk_stride)
    integers = np.empty(4, np.int32)
    for row in range(rows):
        for group in range(groups):
            _quantize_group(
                load(block, uint64(VALUES)) + 4 * row * stride,
                places_address + 8 * PLACE_FIELDS * group,
                values_address + 4 * VALUE_FIELDS * (row * groups + group),
                chunks_address + 4 * row * chunk_stride,
                digits,
                integers,
            )


@jit
def _quantize_group(
    inputs_address: int, place_address: int, value_address: int, chunks_address: int, digits: int, integers: np.ndarray
) -> None:
    inputs = float32_pointer(inputs_address)
    place, value = int64_pointer(place_address), float32_pointer(value_address)
    start, end = load(place, uint64(1)), load(place, uint64(2))
    chunk = load(place, uint64(3))
    bits = uint32(0)
    for i in range(uint64(start), uint64(end)):
        bits = max(bits, uint32(bits_of_float(load(inputs, i)) & uint32(0x7FFFFFFF)))
    unit = unit_of(float_of_bits(bits), digits)
    inverse = inverse_of(unit)
    words = uint32_pointer(chunks_address)
    tail = np.zeros(4, np.float32)
    total = np.int64(0)
    for first in range(start, end, 4):
        out = offset_uint32(words, uint64(chunk * digits * _WORDS_PER_DIGIT))
        source = offset_float32(inputs, uint64(first))
        if first + 4 > end:
            for i in range(4):
                tail[i] = load(inputs, uint64(first + i)) if first + i < end else float32(0)
            source = float32_pointer(address_of(tail))
        target = int32_pointer(address_of(integers))
        if digits == FLOAT32_DIGITS:
            write_chunk_3(source, inverse, out, target)
        else:
            write_chunk_1(source, inverse, out, target)
        for i in range(4):
            total += integers[i]
        chunk += 1
    for i in range(4):
        store(value, uint64(i), unit)
    store(value, uint64(4), float32(total) * unit)
    keep(tail)
