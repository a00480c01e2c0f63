"""Integer kernels for weights with scales along the outputs: scales ride on the inputs, minimums are summed apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, types, uint64
from numba.extending import intrinsic

from ..layout import BLOCK_ROWS, COLUMN_RECORD_WORDS
from .codes import FACTORS
from .compile import jit, jit_for
from .dot_tile import (
    PASS_AHEAD,
    PASS_BLOCKS,
    PASS_CHUNK_WORDS,
    PASS_CHUNKS,
    PASS_CODES,
    PASS_DIGIT_WORDS,
    PASS_DIGITS,
    PASS_FIELDS,
    PASS_OFFSETS,
    PASS_PART_STEP,
    PASS_ROWS,
    PASS_SUMS,
    PASS_UNITS,
    PASS_WORD,
    Tile,
)
from .fixed_point import FLOAT32_DIGITS, quantize_factors_1, quantize_factors_3
from .inputs import COUNT, DIGITS, INDEX, ROWS, STRIDE, VALUES
from .integer_pass import MOST_COLUMNS, pass_columns, place_columns
from .memory import (
    SPARE,
    address_of,
    aligned,
    float32_pointer,
    keep,
    load,
    offset_float32,
    uint32_pointer,
    uint64_pointer,
)
from .record import BITS, CODES, SCALE
from .vectors import INT32
from .wide_columns import decode_factors_wide

_RECORD_BYTES = 4 * COLUMN_RECORD_WORDS


def make_column_rows(tile: type[Tile], add_pass: Callable[..., Any]) -> Callable[..., Any]:
    """`column_rows` for a kind of CPU."""
    write_rows = _make_write_rows(tile)

    @jit_for(tile.name)
    def column_rows(
        record: int,
        inputs: int,
        band_row: int,
        band_end: int,
        first_record: int,
        start_row: int,
        end_row: int,
        out_row: int,
        out_rows: int,
        out: np.ndarray,
    ) -> None:
        """Rows of one band of a weight with scales along the outputs."""
        bits, digits = load(record, uint64(BITS)), load(inputs, uint64(DIGITS))
        depth = 4 * bits
        num_rows, num_active = load(inputs, uint64(ROWS)), load(inputs, uint64(COUNT))
        records = (band_end + 255) // 256 - band_row // 256
        first_super, end_super = start_row // 256, (end_row + 255) // 256
        supers = end_super - first_super
        rows = end_row - start_row

        sums = np.zeros(num_rows * rows + SPARE, np.float32)
        sums_address = aligned(address_of(sums))
        minimums = np.zeros(num_rows * supers * FACTORS, np.float32)
        factors = np.empty(MOST_COLUMNS * FACTORS, np.float32)
        integers = np.empty(MOST_COLUMNS * digits * FACTORS // 4, np.uint32)
        units = np.empty(FACTORS, np.float32)
        offsets, ahead = np.empty(MOST_COLUMNS, np.uint64), np.empty(MOST_COLUMNS, np.uint64)
        largest = np.empty(FACTORS, np.uint32)
        records_here, records_ahead = np.empty(MOST_COLUMNS, np.uint64), np.empty(MOST_COLUMNS, np.uint64)
        values = np.empty(num_rows * MOST_COLUMNS, np.float32)
        units_at, factors_at = float32_pointer(address_of(units)), float32_pointer(address_of(factors))
        integers_at, largest_at = uint32_pointer(address_of(integers)), uint32_pointer(address_of(largest))
        here_at, ahead_at = uint64_pointer(address_of(records_here)), uint64_pointer(address_of(records_ahead))
        first_at = load(record, uint64(SCALE)) + _RECORD_BYTES * (first_record - band_row // 256)
        fields = np.zeros(PASS_FIELDS, np.int64)
        fields[PASS_CODES] = load(record, uint64(CODES))
        fields[PASS_OFFSETS], fields[PASS_AHEAD] = address_of(offsets), address_of(ahead)
        fields[PASS_CHUNK_WORDS], fields[PASS_DIGIT_WORDS] = digits * FACTORS, FACTORS
        fields[PASS_PART_STEP], fields[PASS_ROWS] = 4, 1
        start = 0
        while start < num_active:
            count = pass_columns(num_active - start)
            chunks = place_columns(
                record, inputs, band_row, band_end, start_row, end_row, start, count, offsets, ahead, fields
            )
            fields[PASS_CHUNKS] = chunks
            _place_records(inputs, first_at, records, start, count, chunks, records_here, records_ahead, values)
            for superblock in range(first_super, end_super):
                first_block = max(superblock * 256, start_row)
                end_block = min(superblock * 256 + 256, end_row)
                half = first_block % 256 // 32
                fields[PASS_WORD] = (first_block - band_row) // BLOCK_ROWS * depth
                fields[PASS_BLOCKS] = (end_block - first_block) // BLOCK_ROWS
                fields[PASS_DIGITS] = address_of(integers) + 4 * half
                fields[PASS_UNITS] = address_of(units) + 4 * half
                for r in range(num_rows):
                    decode_factors_wide(
                        here_at,
                        ahead_at,
                        uint64(_RECORD_BYTES * superblock),
                        offset_float32(float32_pointer(address_of(values)), uint64(r * MOST_COLUMNS)),
                        uint64(2 * chunks),
                        factors_at,
                        offset_float32(
                            float32_pointer(address_of(minimums)),
                            uint64((r * supers + superblock - first_super) * FACTORS),
                        ),
                        largest_at,
                    )
                    if digits == FLOAT32_DIGITS:
                        quantize_factors_3(factors_at, largest_at, uint64(chunks), integers_at, units_at)
                    else:
                        quantize_factors_1(factors_at, largest_at, uint64(chunks), integers_at, units_at)
                    fields[PASS_SUMS] = sums_address + 4 * (r * rows + first_block - start_row)
                    add_pass(bits, digits, address_of(fields))
            start += count
        for r in range(num_rows):
            for block in range(0, rows, BLOCK_ROWS):
                write_rows(
                    bits,
                    offset_float32(float32_pointer(sums_address), uint64(r * rows + block)),
                    offset_float32(
                        float32_pointer(address_of(minimums)),
                        uint64((r * supers - first_super) * FACTORS + (start_row + block) // 32),
                    ),
                    offset_float32(
                        float32_pointer(address_of(out)), uint64(r * out_rows + start_row - out_row + block)
                    ),
                )
        keep(out)
        keep(sums)
        keep(minimums)
        keep(factors)
        keep(integers)
        keep(units)
        keep(largest)
        keep(records_here)
        keep(records_ahead)
        keep(values)
        keep(offsets)
        keep(ahead)
        keep(fields)

    return column_rows


@jit
def _place_records(
    inputs: int,
    first_at: int,
    records: int,
    start: int,
    count: int,
    chunks: int,
    here: np.ndarray,
    ahead: np.ndarray,
    values: np.ndarray,
) -> None:
    """Fill the addresses of the records of the columns of a pass, of those to prefetch, and the inputs.

    The last chunk is filled up with a column that is there anyway, times zero.
    """
    index = uint64_pointer(load(inputs, uint64(INDEX)))
    last = load(inputs, uint64(COUNT)) - 1
    for c in range(chunks * 4):
        column = np.int64(load(index, uint64(start + min(c, count - 1))))
        following = np.int64(load(index, uint64(min(start + count + c, last))))
        here[c] = uint64(first_at + column * records * _RECORD_BYTES)
        ahead[c] = uint64(first_at + following * records * _RECORD_BYTES)
    stride = load(inputs, uint64(STRIDE))
    for r in range(load(inputs, uint64(ROWS))):
        row = float32_pointer(load(inputs, uint64(VALUES)) + 4 * r * stride)
        for c in range(chunks * 4):
            values[r * MOST_COLUMNS + c] = load(row, uint64(start + c)) if c < count else float32(0)


def _make_write_rows(tile: type[Tile]) -> Callable[..., Any]:
    """What ends a block: out[0:128] = the sums that its passes left, minus the minimum of each 32 rows."""
    write_2, write_4, write_8 = (_row_writer(tile(bits, 1)) for bits in (2, 4, 8))

    @jit_for(tile.name)
    def write_rows(bits: int, sums: int, minimums: int, out: int) -> None:
        if bits == 4:
            write_4(sums, minimums, out)
        elif bits == 8:
            write_8(sums, minimums, out)
        else:
            write_2(sums, minimums, out)

    return write_rows


def _row_writer(tile: Tile) -> Any:
    def write(typing_context: Any, sums: Any, minimums: Any, out: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for row, values in tile.in_row_order(builder, args[0]):
                one = builder.load(builder.gep(args[1], [INT32(row // 32)]))
                splat = builder.insert_element(values, one, INT32(0))
                splat = builder.shuffle_vector(splat, splat, tile.constant(0))
                pointer = builder.bitcast(builder.gep(args[2], [INT32(row)]), tile.floats.as_pointer())
                builder.store(builder.fsub(values, splat), pointer, align=4)
            return context.get_dummy_value()

        floats = types.CPointer(types.float32)
        return types.void(floats, floats, floats), build

    return intrinsic(write)
