"""The inner loop of the AVX-512 VNNI variant: a pass of columns over blocks of 128 rows, in integers.

Four columns are read side by side. Their code words are transposed byte by byte, so that every 32-bit lane holds one
byte of each column; masking a bit field of the bytes gives four codes, which one dot-product instruction multiplies by
four signed bytes of the inputs. Inputs are integers of one or three such bytes ("digits", see fixed_point.py); each
digit has sums of its own, which are exact, and only the end of the pass turns them into floats.

Byte m of word d of a block holds rows 32 * m + (rows per field) * field + d, whatever the width of the codes. So byte m
belongs to the m-th 32 rows, and a factor that changes every 32 rows (scales along the outputs) costs nothing extra: the
digits of a chunk of four columns are stored as four words, one per 32 rows, and broadcast to all 128-bit lanes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..layout import BLOCK_ROWS
from .compile import jit
from .memory import prefetch_line

WALK_FIELDS = 4
"""uint64 that say where a pass prefetches: the next word, the end of that column, which column, and its words.

A pass prefetches the columns of the next pass, one after the other from top to bottom, into the second-level cache. On
a Zen 4 core, 50 % active, one thread: 4096x11008 0.65 ms
and 11008x4096 0.80; side by side instead of one after the other 0.68 and 0.84; into the first-level cache, four blocks
ahead of the sums, 0.77 and 1.19."""
CHUNK_COLUMNS = 4
"""Columns that one dot-product instruction takes."""
DIGIT_WORDS = 4
"""Words that one digit of a chunk of columns takes: one per 32 rows of a block."""
_INT1, _INT8, _INT32, _INT64 = (ir.IntType(width) for width in (1, 8, 32, 64))
_FLOAT = ir.FloatType()


class Tile:
    """Emits the code for one width of codes and one number of digits.

    Attributes:
        lanes: 32-bit lanes of a register; a block of 2-bit codes is only 8 words deep.
        vectors: registers that hold a block of one column.
        fields: bit fields of a byte.
    """

    def __init__(self, bits: int, digits: int) -> None:
        self.bits, self.digits = bits, digits
        depth = 4 * bits
        self.lanes = min(16, depth)
        self.vectors = depth // self.lanes
        self.fields = 8 // bits
        self.words = ir.VectorType(_INT32, self.lanes)
        self.bytes = ir.VectorType(_INT8, 4 * self.lanes)
        self.floats = ir.VectorType(_FLOAT, self.lanes)

    def transposed(self, builder: Any, columns: list[Any], part: range) -> list[Any]:
        """Registers q[i], i in `part`, with bytes (c0, c1, c2, c3) in lane 4 * L + m, of byte m of word 4 * L + i."""
        quads = []
        for i in part:
            a, b = (_unpack(builder, columns[c], columns[c + 1], 8, i // 2) for c in (0, 2))
            quads.append(_unpack(builder, a, b, 16, i % 2))
        return quads

    def constant(self, value: int) -> Any:
        return ir.Constant(self.words, [value] * self.lanes)

    def dot(self, builder: Any, total: Any, codes: Any, digits: Any) -> Any:
        """total + the sum over four bytes of codes (unsigned) * digits (signed), in every lane."""
        kind = ir.FunctionType(self.words, [self.words] * 3)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [total, codes, digits])

    def broadcast(self, builder: Any, pointer: Any, element: Any) -> Any:
        """The four elements at a pointer, repeated over a register."""
        quad = builder.load(builder.bitcast(pointer, ir.VectorType(element, 4).as_pointer()), align=4)
        return builder.shuffle_vector(quad, quad, ir.Constant(self.words, [0, 1, 2, 3] * (self.lanes // 4)))

    def emit(self, builder: Any, arguments: dict[str, Any]) -> None:
        """Emit the body of `add_pass`; the keys of `arguments` are its parameters."""
        depth = _INT64(4 * self.bits)
        # In registers while the pass runs, in memory between the calls that make up one pass of an "out" weight.
        memory = arguments["walk"]
        walk = [builder.load(builder.gep(memory, [_INT64(field)])) for field in range(WALK_FIELDS)]
        slots = [cgutils.alloca_once_value(builder, value) for value in walk]
        arguments = {**arguments, "walk": slots}
        with cgutils.for_range(builder, arguments["blocks"]) as blocks:
            block = {**arguments, "word": builder.add(arguments["word"], builder.mul(blocks.index, depth))}
            with cgutils.for_range(builder, arguments["rows"]) as rows:

                def place(name: str, steps: tuple[str, Any], of: Any = rows.index, by: Any = blocks.index) -> Any:
                    first = builder.gep(arguments[name], [builder.mul(of, arguments[steps[0]])])
                    return builder.gep(first, [builder.mul(by, steps[1])])

                block["digits"] = place("digits", ("digits_step", arguments["part_step"]))
                block["units"] = place("units", ("units_step", arguments["part_step"]))
                block["sums"] = place("sums", ("sums_step", _INT64(BLOCK_ROWS)))
                self._emit_block(builder, block)
        for field, slot in enumerate(slots):
            builder.store(builder.load(slot), builder.gep(memory, [_INT64(field)]))

    def _emit_block(self, builder: Any, arguments: dict[str, Any]) -> None:
        # At most 12 registers of sums at a time. With 24 everything still fits the 32 registers, but LLVM moves values
        # between them all the time: 576x1536 took 1.5 times as long.
        step = next(step for step in (4, 2, 1) if step * self.digits * self.fields <= 12)
        quad = self.broadcast(builder, arguments["units"], _FLOAT)
        units = [
            builder.fmul(quad, ir.Constant(self.floats, [2.0 ** (-self.bits * field)] * self.lanes))
            for field in range(self.fields)
        ]
        for vector in range(self.vectors):
            for first in range(0, 4, step):
                part = range(first, first + step)
                for i, fields in zip(part, self._sums_of_part(builder, vector, part, arguments), strict=True):
                    for field, slots in enumerate(fields):
                        self._add(builder, slots, units[field], self._place(vector, field, i), arguments)

    def _place(self, vector: int, field: int, i: int) -> int:
        """Where the sums of one register lie among the 128 of a block, in the order of `to_row_order`."""
        return ((vector * self.fields + field) * 4 + i) * self.lanes

    def _sums_of_part(self, builder: Any, vector: int, part: range, arguments: dict[str, Any]) -> list[list[Any]]:
        """For each i of `part`, field and digit, a slot with the sums of lane 4 * L + m: row 4 * L + i of byte m."""
        zero = self.constant(0)
        sums = [
            [[cgutils.alloca_once_value(builder, zero) for _ in range(self.digits)] for _ in range(self.fields)]
            for _ in part
        ]
        with cgutils.for_range(builder, arguments["chunks"]) as loop:
            first_column = builder.mul(loop.index, _INT64(CHUNK_COLUMNS))
            columns = []
            for c in range(CHUNK_COLUMNS):
                column = builder.add(first_column, _INT64(c))
                # Spread over the parts: prefetches that come all at once wait for each other.
                if c // len(part) == part.start // len(part):
                    self._prefetch(builder, arguments)
                columns.append(self._read(builder, column, vector, arguments))
            digits = []
            for digit in range(self.digits):
                at = builder.add(builder.mul(loop.index, arguments["chunk_words"]), arguments["digit_words"][digit])
                digits.append(self.broadcast(builder, builder.gep(arguments["digits"], [at]), _INT32))
            quads = self.transposed(builder, columns, part)
            for i, codes in enumerate(quads):
                for field in range(self.fields):
                    mask = ((1 << self.bits) - 1) << (self.bits * field)
                    masked = codes if self.fields == 1 else builder.and_(codes, self.constant(mask * 0x01010101))
                    for digit, slot in enumerate(sums[i][field]):
                        builder.store(self.dot(builder, builder.load(slot), masked, digits[digit]), slot)
        return sums

    def _read(self, builder: Any, column: Any, vector: int, arguments: dict[str, Any]) -> Any:
        offset = builder.load(builder.gep(arguments["offsets"], [column]))
        place = builder.add(builder.add(offset, arguments["word"]), _INT64(self.lanes * vector))
        pointer = builder.bitcast(builder.gep(arguments["codes"], [place]), self.words.as_pointer())
        return builder.load(pointer, align=4)

    def _prefetch(self, builder: Any, arguments: dict[str, Any]) -> None:
        """Prefetch the next line of the columns of the next pass, one column after the other."""
        place, end, column, length = arguments["walk"]
        here = builder.load(place)
        prefetch_line(builder, builder.gep(arguments["codes"], [here]))
        following = builder.add(here, _INT64(self.lanes))
        builder.store(following, place)
        with builder.if_then(builder.icmp_unsigned(">=", following, builder.load(end)), likely=False):
            # Several rows of x walk over the same columns again, which costs little: they are there by then.
            next_column = builder.add(builder.load(column), _INT64(1))
            columns = builder.mul(arguments["chunks"], _INT64(CHUNK_COLUMNS))
            next_column = builder.select(builder.icmp_unsigned("<", next_column, columns), next_column, _INT64(0))
            start = builder.load(builder.gep(arguments["ahead"], [next_column]))
            builder.store(next_column, column)
            builder.store(start, place)
            builder.store(builder.add(start, builder.load(length)), end)

    def _add(self, builder: Any, slots: list[Any], units: Any, place: int, arguments: dict[str, Any]) -> None:
        """Set or add units * the number whose digits, most significant first, have these sums."""
        total = builder.sitofp(builder.load(slots[0]), self.floats)
        for slot in slots[1:]:
            digit = builder.sitofp(builder.load(slot), self.floats)
            total = _multiply_add(builder, total, ir.Constant(self.floats, [256.0] * self.lanes), digit)
        pointer = builder.bitcast(builder.gep(arguments["sums"], [_INT64(place)]), self.floats.as_pointer())
        zero = ir.Constant(self.floats, [0.0] * self.lanes)
        old = builder.select(arguments["first"], zero, builder.load(pointer, align=4))
        builder.store(_multiply_add(builder, total, units, old), pointer, align=4)

    def in_row_order(self, builder: Any, sums: Any) -> list[tuple[int, Any]]:
        """The 128 sums that `add_pass` left at a float32 pointer, as registers with the row of their first lane."""
        moved = []
        for vector in range(self.vectors):
            for field in range(self.fields):
                pointers = [builder.gep(sums, [_INT64(self._place(vector, field, i))]) for i in range(4)]
                columns = [builder.load(builder.bitcast(p, self.floats.as_pointer()), align=4) for p in pointers]
                for m, values in enumerate(_transpose_4x4(builder, columns, self.lanes)):
                    moved.append((32 * m + 4 * self.bits * field + self.lanes * vector, values))
        return moved

    def emit_row_order(self, builder: Any, sums: Any) -> None:
        """Emit the body of `to_row_order`."""
        for row, values in self.in_row_order(builder, sums):
            pointer = builder.bitcast(builder.gep(sums, [_INT64(row)]), self.floats.as_pointer())
            builder.store(values, pointer, align=4)


def _unpack(builder: Any, a: Any, b: Any, width: int, half: int) -> Any:
    """Interleave the lower or upper half of every 128-bit lane of two registers, `width` bits at a time."""
    lanes = a.type.count
    kind = ir.VectorType(ir.IntType(width), 32 * lanes // width)
    per_lane = 128 // width
    index = []
    for start in range(0, kind.count, per_lane):
        for element in range(start + half * per_lane // 2, start + (half + 1) * per_lane // 2):
            index += [element, kind.count + element]
    mixed = builder.shuffle_vector(
        builder.bitcast(a, kind), builder.bitcast(b, kind), ir.Constant(ir.VectorType(_INT32, kind.count), index)
    )
    return builder.bitcast(mixed, a.type)


def _transpose_4x4(builder: Any, rows: list[Any], lanes: int) -> list[Any]:
    """In every 128-bit lane: element m of register i becomes element i of register m."""

    def mix(a: Any, b: Any, picks: tuple[int, int, int, int]) -> Any:
        index = [base + pick % 4 + (lanes if pick >= 4 else 0) for base in range(0, lanes, 4) for pick in picks]
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, lanes), index))

    low = [mix(rows[i], rows[i + 1], (0, 4, 1, 5)) for i in (0, 2)]
    high = [mix(rows[i], rows[i + 1], (2, 6, 3, 7)) for i in (0, 2)]
    return [mix(a, b, picks) for a, b in (low, high) for picks in ((0, 1, 4, 5), (2, 3, 6, 7))]


def _multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    return builder.fadd(total, builder.fmul(a, b, flags=("contract",)), flags=("contract",))


def _pass_adder(bits: int, digits: int) -> Any:
    """An intrinsic: sums[r, b, 0:128] = or += units * (codes . digits) for `blocks` blocks and `rows` rows of x, over
    `chunks` chunks of four columns. A block's sums are in the order that `to_row_order` turns into that of the rows.

    Its arguments:
        codes: uint32 pointer to all code words; `word` is the first block's first word inside a column.
        offsets: uint64 pointer, the first word of each column.
        ahead: uint64 pointer, the first word of every column of the next pass, in the first block.
        walk: uint64 pointer, `WALK_FIELDS`: which of them to prefetch next; moved on.
        digits: uint32 pointer to the digits of the first chunk; chunk c has digit d at c * chunk_words + d *
            digit_words, four words. Another row of x is `digits_step` words on, another block `part_step`.
        units: pointer to four float32, one per 32 rows; `units_step` and `part_step` further on for another row or
            block.
        first: 1 to set the sums, 0 to add to them.
        sums: float32 pointer; another row of x is `sums_step` further on.
    """
    tile = Tile(bits, digits)

    def add_pass(
        typing_context: Any,
        codes: Any,
        word: Any,
        offsets: Any,
        ahead: Any,
        walk: Any,
        blocks: Any,
        chunks: Any,
        inputs: Any,
        chunk_words: Any,
        digit_words: Any,
        units: Any,
        part_step: Any,
        first: Any,
        sums: Any,
        rows: Any,
        digits_step: Any,
        units_step: Any,
        sums_step: Any,
    ) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arguments = dict(zip(_PASS_ARGUMENTS, args, strict=True))
            arguments["digit_words"] = [builder.mul(arguments["digit_words"], _INT64(digit)) for digit in range(digits)]
            arguments["first"] = builder.icmp_unsigned("!=", arguments["first"], _INT64(0))
            tile.emit(builder, arguments)
            return context.get_dummy_value()

        words, floats, size = types.CPointer(types.uint32), types.CPointer(types.float32), types.uint64
        places = types.CPointer(types.uint64)
        return types.void(
            words, size, places, places, places, size, size, words, size, size, floats, size, size, floats, size,
            size, size, size,
        ), build  # fmt: skip

    return intrinsic(add_pass)


_PASS_ARGUMENTS = (
    "codes", "word", "offsets", "ahead", "walk", "blocks", "chunks", "digits", "chunk_words",
    "digit_words", "units", "part_step", "first", "sums", "rows", "digits_step", "units_step", "sums_step",
)  # fmt: skip

add_pass_2x1, add_pass_4x1, add_pass_8x1 = (_pass_adder(bits, 1) for bits in (2, 4, 8))
add_pass_2x3, add_pass_4x3, add_pass_8x3 = (_pass_adder(bits, 3) for bits in (2, 4, 8))


def _row_orderer(bits: int) -> Any:
    """An intrinsic: put the 128 sums of a block at a float32 pointer into the order of the rows."""
    tile = Tile(bits, 1)

    def to_row_order(typing_context: Any, sums: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tile.emit_row_order(builder, args[0])
            return context.get_dummy_value()

        return types.void(types.CPointer(types.float32)), build

    return intrinsic(to_row_order)


_to_row_order_2, _to_row_order_4, _to_row_order_8 = (_row_orderer(bits) for bits in (2, 4, 8))


@jit
def to_row_order(bits: int, sums: int) -> None:
    """Put the 128 sums that `add_pass` left at a float32 pointer into the order of the rows."""
    if bits == 4:
        _to_row_order_4(sums)
    elif bits == 8:
        _to_row_order_8(sums)
    else:
        _to_row_order_2(sums)
