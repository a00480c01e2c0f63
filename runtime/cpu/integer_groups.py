"""Integer kernels for weights whose scales run along the inputs: sums per group, then scale and zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, uint64

from ..layout import BLOCK_ROWS
from .compile import jit_for
from .dot_tile import (
    PASS_AHEAD,
    PASS_BLOCKS,
    PASS_CHUNK_WORDS,
    PASS_CHUNKS,
    PASS_CODES,
    PASS_DIGIT_WORDS,
    PASS_DIGITS,
    PASS_DIGITS_STEP,
    PASS_FIELDS,
    PASS_FIRST,
    PASS_OFFSETS,
    PASS_PART_STEP,
    PASS_ROWS,
    PASS_SUMS,
    PASS_SUMS_STEP,
    PASS_UNITS,
    PASS_UNITS_STEP,
    PASS_WORD,
    Tile,
)
from .inputs import (
    CHUNK_STRIDE,
    CHUNKS,
    DIGITS,
    GROUP_PLACES,
    GROUP_VALUES,
    GROUPS,
    PLACE_FIELDS,
    ROWS,
    VALUE_FIELDS,
)
from .integer_pass import MOST_COLUMNS, pass_columns, place_columns
from .memory import SPARE, address_of, aligned, float32_pointer, int64_pointer, keep, load, offset_float32
from .record import (
    ADD_ZERO,
    BITS,
    CODES,
    GROUP_SIZE,
    SCALE,
    SCALE_DTYPE,
    ZERO,
    ZERO_DTYPE,
    ZERO_KIND,
    K,
)
from .wide_scales import make_apply_scales


def make_group_rows(tile: type[Tile], add_pass: Callable[..., Any]) -> Callable[..., Any]:
    """`group_rows` for a kind of CPU."""
    apply_scales = make_apply_scales(tile)

    @jit_for(tile.name)
    def group_rows(
        record: int,
        inputs: int,
        band_row: int,
        band_end: int,
        start_row: int,
        end_row: int,
        out_row: int,
        out_rows: int,
        out: np.ndarray,
    ) -> None:
        """Rows of one band of a weight whose scales run along the inputs: sums per group, then scale and zero."""
        bits, digits = load(record, uint64(BITS)), load(inputs, uint64(DIGITS))
        num_rows, groups = load(inputs, uint64(ROWS)), load(inputs, uint64(GROUPS))
        places = int64_pointer(load(inputs, uint64(GROUP_PLACES)))
        values_address = load(inputs, uint64(GROUP_VALUES))
        values, chunk_words = float32_pointer(values_address), digits * 4
        group_size = load(record, uint64(GROUP_SIZE))
        num_groups = (load(record, uint64(K)) + group_size - 1) // group_size
        adds_zero = np.int64(load(record, uint64(ZERO_KIND)) == ADD_ZERO)
        rows = end_row - start_row
        for r in range(num_rows):
            first_out = r * out_rows + start_row - out_row
            out[first_out : first_out + rows] = float32(0)

        sums = np.empty(num_rows * rows + SPARE, np.float32)
        sums_address = aligned(address_of(sums))
        sums_at, outs = float32_pointer(sums_address), float32_pointer(address_of(out))
        offsets, ahead = np.empty(MOST_COLUMNS, np.uint64), np.empty(MOST_COLUMNS, np.uint64)
        fields = np.zeros(PASS_FIELDS, np.int64)
        fields[PASS_CODES] = load(record, uint64(CODES))
        fields[PASS_WORD] = (start_row - band_row) // BLOCK_ROWS * 4 * bits
        fields[PASS_OFFSETS], fields[PASS_AHEAD] = address_of(offsets), address_of(ahead)
        fields[PASS_BLOCKS] = rows // BLOCK_ROWS
        fields[PASS_CHUNK_WORDS], fields[PASS_DIGIT_WORDS] = chunk_words, 4
        fields[PASS_SUMS], fields[PASS_SUMS_STEP] = sums_address, rows
        fields[PASS_ROWS] = num_rows
        fields[PASS_DIGITS_STEP] = load(inputs, uint64(CHUNK_STRIDE))
        fields[PASS_UNITS_STEP] = groups * VALUE_FIELDS
        fields[PASS_PART_STEP] = 0
        for g in range(groups):
            at = uint64(g * PLACE_FIELDS)
            group, start = load(places, at), load(places, at + uint64(1))
            end, chunk = load(places, at + uint64(2)), load(places, at + uint64(3))
            fields[PASS_UNITS] = values_address + 4 * g * VALUE_FIELDS
            fields[PASS_FIRST] = 1
            while start < end:
                count = pass_columns(end - start)
                chunks = place_columns(
                    record, inputs, band_row, band_end, start_row, end_row, start, count, offsets, ahead, fields
                )
                fields[PASS_CHUNKS] = chunks
                fields[PASS_DIGITS] = load(inputs, uint64(CHUNKS)) + 4 * chunk * chunk_words
                add_pass(bits, digits, address_of(fields))
                fields[PASS_FIRST] = 0
                start += count
                chunk += chunks
            first_scale = band_row * num_groups + group * (band_end - band_row) + start_row - band_row
            for block in range(0, rows, BLOCK_ROWS):
                for r in range(num_rows):
                    apply_scales(
                        bits,
                        offset_float32(sums_at, uint64(r * rows + block)),
                        load(record, uint64(SCALE)),
                        load(record, uint64(SCALE_DTYPE)),
                        load(record, uint64(ZERO)),
                        load(record, uint64(ZERO_DTYPE)),
                        first_scale + block,
                        adds_zero,
                        load(values, uint64((r * groups + g) * VALUE_FIELDS + 4)),
                        offset_float32(outs, uint64(r * out_rows + start_row - out_row + block)),
                    )
        keep(out)
        keep(sums)
        keep(offsets)
        keep(ahead)
        keep(fields)

    return group_rows
