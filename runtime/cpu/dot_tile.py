"""The inner loop of the integer kernels: a pass of columns over blocks of 128 rows; here for AVX-512 VNNI.

Four columns are read side by side. Their code words are transposed byte by byte, so that every 32-bit lane holds one
byte of each column; masking a bit field of the bytes gives four codes, which one dot-product instruction multiplies by
four signed bytes of the inputs. Inputs are integers of one or three such bytes ("digits", see fixed_point.py); each
digit has sums of its own, which are exact, and only the end of the pass turns them into floats.

Byte m of word d of a block holds rows 32 * m + (rows per field) * field + d, whatever the width of the codes. So byte m
belongs to the m-th 32 rows, and a factor that changes every 32 rows (scales along the outputs) costs nothing extra: the
digits of a chunk of four columns are stored as four words, one per 32 rows, and broadcast to all 128-bit lanes.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils

from ..layout import BLOCK_ROWS
from .compile import target_cpu
from .memory import prefetch_line

PASS_CODES: Final = 0
"""Address of all code words."""
PASS_WORD: Final = 1
"""The first block's first word inside a column."""
PASS_OFFSETS: Final = 2
"""Address of uint64, the first word of each column."""
PASS_AHEAD: Final = 3
"""Address of uint64, the first word of each column of the next pass, in the first block."""
PASS_BLOCKS: Final = 4
PASS_CHUNKS: Final = 5
"""Chunks of four columns, at most `MOST_CHUNKS`."""
PASS_DIGITS: Final = 6
"""Address of the digits of the first chunk: uint32, four words a digit."""
PASS_CHUNK_WORDS: Final = 7
PASS_DIGIT_WORDS: Final = 8
"""Words from a chunk, and from a digit, to the next."""
PASS_UNITS: Final = 9
"""Address of four float32, one per 32 rows."""
PASS_PART_STEP: Final = 10
"""Words from a block to the next, in digits and units."""
PASS_FIRST: Final = 11
"""1 to set the sums, 0 to add to them."""
PASS_SUMS: Final = 12
"""Address of float32, 128 per block; see `Tile.in_row_order`."""
PASS_ROWS: Final = 13
"""Rows of x."""
PASS_DIGITS_STEP: Final = 14
PASS_UNITS_STEP: Final = 15
PASS_SUMS_STEP: Final = 16
"""From a row of x to the next."""
PASS_END: Final = 17
"""The word after the last block of the rows inside a column."""
PASS_WALK: Final = 18
"""Where to prefetch: the next word, the end of its column, which of the columns ahead that is, and its words. Moved on.

A pass prefetches the columns of the next one, each from top to bottom, into the second-level cache. 50 % active, one
thread of a Zen 4: 4096x11008 0.65 ms and 11008x4096 0.80; side by side instead of one after the other 0.68 and 0.84.

CPUs of other makers prefetch into the first-level cache, `NEAR_BLOCKS` ahead of the sums, which takes a Zen 4 0.77 and
1.19 ms (a core of it waits for few such lines at once). On an Intel server it was the better of what was tried, which
the walk was not: 1.06 ms for 4096x11008, 1.34 without prefetching."""
WALK_FIELDS: Final = 4
PASS_FIELDS: Final = PASS_WALK + WALK_FIELDS

NEAR_BLOCKS: Final = 4
"""On an Intel server, 11008x4096 and 4096x11008, 50 % active: 4 blocks 1.14 and 0.98 ms, 8 blocks 1.21 and 1.05."""
CHUNK_COLUMNS: Final = 4
"""Columns that one dot-product instruction takes."""
MOST_CHUNKS: Final = 4
"""Chunks of four columns that a pass has at most. 11008x4096, 50 % active: 0.80 ms, with 6 chunks 0.90 (in columns of
2 KB, more than 16 lines share two sets of the first-level cache); 4096x11008 0.65 and 0.73."""
_INT8, _INT32, _INT64 = (ir.IntType(width) for width in (8, 32, 64))
_FLOAT = ir.FloatType()


class Tile:
    """Emits the code for one width of codes and one number of digits.

    Attributes:
        name: of the variant.
        lanes: 32-bit lanes of a register; a block of 2-bit codes is only 8 words deep.
        vectors: registers that hold a block of one column.
        fields: bit fields of a byte.
        slots: registers that one sum takes.
        walks: whether to prefetch along `PASS_WALK`, or near the sums.
    """

    name = "avx512_vnni"
    most_lanes = 16
    # With 24 sums everything still fits the 32 registers, but LLVM moves values between them all the time: 576x1536
    # took 1.5 times as long.
    most_sums = 12
    slots = 1

    def __init__(self, bits: int, digits: int) -> None:
        self.bits, self.digits = bits, digits
        self.walks = target_cpu().startswith("znver")
        depth = 4 * bits
        self.lanes = min(self.most_lanes, depth)
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

    def codes_of(self, builder: Any, quad: Any, field: int) -> Any:
        """One code per byte, times 2**(bits * field)."""
        if self.fields == 1:
            return quad
        return builder.and_(quad, self.constant(((1 << self.bits) - 1) * 0x01010101 << (self.bits * field)))

    def unit_of(self, field: int) -> float:
        """What undoes the power of two of `codes_of`."""
        return float(2.0 ** (-self.bits * field))

    def add_dot(self, builder: Any, slots: list[Any], codes: Any, digits: Any) -> None:
        """Add to a sum the sum over four bytes of codes (unsigned) * digits (signed), in every lane."""
        kind = ir.FunctionType(self.words, [self.words] * 3)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.store(builder.call(function, [builder.load(slots[0]), codes, digits]), slots[0])

    def total_of(self, builder: Any, slots: list[Any]) -> Any:
        """A sum, one 32-bit integer per lane."""
        return builder.load(slots[0])

    def broadcast(self, builder: Any, pointer: Any, element: Any) -> Any:
        """The four elements at a pointer, repeated over a register."""
        quad = builder.load(builder.bitcast(pointer, ir.VectorType(element, 4).as_pointer()), align=4)
        return builder.shuffle_vector(quad, quad, ir.Constant(self.words, [0, 1, 2, 3] * (self.lanes // 4)))

    def emit(self, builder: Any, fields: Any) -> None:
        """Emit a pass; `fields` is an int64 pointer to its `PASS_FIELDS`."""

        def field(index: int) -> Any:
            return builder.load(builder.gep(fields, [_INT64(index)]))

        def pointer(index: int, kind: Any) -> Any:
            return builder.inttoptr(field(index), kind.as_pointer())

        walk = [cgutils.alloca_once_value(builder, field(PASS_WALK + i)) for i in range(WALK_FIELDS)]
        word, rows_of_x, part_step, digit_words = map(field, (PASS_WORD, PASS_ROWS, PASS_PART_STEP, PASS_DIGIT_WORDS))
        digits, units, sums = pointer(PASS_DIGITS, _INT32), pointer(PASS_UNITS, _FLOAT), pointer(PASS_SUMS, _FLOAT)
        steps = [field(index) for index in (PASS_DIGITS_STEP, PASS_UNITS_STEP, PASS_SUMS_STEP)]
        block: dict[str, Any] = {
            "codes": pointer(PASS_CODES, _INT32),
            "offsets": pointer(PASS_OFFSETS, _INT64),
            "ahead": pointer(PASS_AHEAD, _INT64),
            "chunks": field(PASS_CHUNKS),
            "chunk_words": field(PASS_CHUNK_WORDS),
            "digit_words": [builder.mul(digit_words, _INT64(digit)) for digit in range(self.digits)],
            "first": builder.icmp_unsigned("!=", field(PASS_FIRST), _INT64(0)),
            "walk": walk,
            "end": field(PASS_END),
        }
        with cgutils.for_range(builder, field(PASS_BLOCKS)) as blocks:
            block["word"] = builder.add(word, builder.mul(blocks.index, _INT64(4 * self.bits)))
            with cgutils.for_range(builder, rows_of_x) as rows:

                def place(base: Any, row_step: Any, block_step: Any, of: Any = rows, by: Any = blocks) -> Any:
                    return builder.gep(
                        builder.gep(base, [builder.mul(of.index, row_step)]), [builder.mul(by.index, block_step)]
                    )

                block["digits"] = place(digits, steps[0], part_step)
                block["units"] = place(units, steps[1], part_step)
                block["sums"] = place(sums, steps[2], _INT64(BLOCK_ROWS))
                self._emit_block(builder, block)
        for i, slot in enumerate(walk):
            builder.store(builder.load(slot), builder.gep(fields, [_INT64(PASS_WALK + i)]))

    def _emit_block(self, builder: Any, arguments: dict[str, Any]) -> None:
        per_part = self.digits * self.fields * self.slots
        step = next((step for step in (4, 2) if step * per_part <= self.most_sums), 1)
        quad = self.broadcast(builder, arguments["units"], _FLOAT)
        units = [
            builder.fmul(quad, ir.Constant(self.floats, [self.unit_of(field)] * self.lanes))
            for field in range(self.fields)
        ]
        for vector in range(self.vectors):
            for first in range(0, 4, step):
                part = range(first, first + step)
                for i, fields in zip(part, self._sums_of_part(builder, vector, part, arguments), strict=True):
                    for field, sums in enumerate(fields):
                        self._add(builder, sums, units[field], self._place(vector, field, i), arguments)

    def _place(self, vector: int, field: int, i: int) -> int:
        """Where the sums of one register lie among the 128 of a block, see `in_row_order`."""
        return ((vector * self.fields + field) * 4 + i) * self.lanes

    def _sums_of_part(self, builder: Any, vector: int, part: range, arguments: dict[str, Any]) -> list[list[Any]]:
        """For each i of `part`, field and digit, the slots of the sum of lane 4 * L + m: row 4 * L + i of byte m."""
        zero = self.constant(0)

        def new_sum() -> list[Any]:
            return [cgutils.alloca_once_value(builder, zero) for _ in range(self.slots)]

        sums = [[[new_sum() for _ in range(self.digits)] for _ in range(self.fields)] for _ in part]
        with cgutils.for_range(builder, arguments["chunks"]) as loop:
            first_column = builder.mul(loop.index, _INT64(CHUNK_COLUMNS))
            columns = []
            for c in range(CHUNK_COLUMNS):
                column = builder.add(first_column, _INT64(c))
                # Spread over the parts: prefetches that come all at once wait for each other.
                if c // len(part) == part.start // len(part) and vector * self.lanes % self._line_words == 0:
                    if self.walks:
                        self._prefetch_walking(builder, arguments)
                    else:
                        self._prefetch_near(builder, column, self.lanes * vector, arguments)
                columns.append(self._read(builder, column, vector, arguments))
            digits = []
            for digit in range(self.digits):
                at = builder.add(builder.mul(loop.index, arguments["chunk_words"]), arguments["digit_words"][digit])
                digits.append(self.broadcast(builder, builder.gep(arguments["digits"], [at]), _INT32))
            quads = self.transposed(builder, columns, part)
            for i, quad in enumerate(quads):
                for field in range(self.fields):
                    codes = self.codes_of(builder, quad, field)
                    for digit, slots in enumerate(sums[i][field]):
                        self.add_dot(builder, slots, codes, digits[digit])
        return sums

    @property
    def _line_words(self) -> int:
        """Words that one prefetch covers: a cache line, or a whole block that is shorter."""
        return min(16, 4 * self.bits)

    def _read(self, builder: Any, column: Any, vector: int, arguments: dict[str, Any]) -> Any:
        offset = builder.load(builder.gep(arguments["offsets"], [column]))
        place = builder.add(builder.add(offset, arguments["word"]), _INT64(self.lanes * vector))
        pointer = builder.bitcast(builder.gep(arguments["codes"], [place]), self.words.as_pointer())
        return builder.load(pointer, align=4)

    def _prefetch_near(self, builder: Any, column: Any, line: int, arguments: dict[str, Any]) -> None:
        """Prefetch a line some blocks ahead in a column, or past its end in the column that comes in its place."""
        reach = builder.add(arguments["word"], _INT64(NEAR_BLOCKS * 4 * self.bits))
        here = builder.icmp_unsigned("<", reach, arguments["end"])
        places = builder.select(here, arguments["offsets"], arguments["ahead"])
        word = builder.select(here, reach, builder.sub(reach, arguments["end"]))
        place = builder.add(builder.load(builder.gep(places, [column])), builder.add(word, _INT64(line)))
        prefetch_line(builder, builder.gep(arguments["codes"], [place]), 3)

    def _prefetch_walking(self, builder: Any, arguments: dict[str, Any]) -> None:
        """Prefetch the next line of the columns of the next pass, one column after the other."""
        place, end, column, length = arguments["walk"]
        here = builder.load(place)
        prefetch_line(builder, builder.gep(arguments["codes"], [here]))
        following = builder.add(here, _INT64(self._line_words))
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

    def _add(self, builder: Any, sums: list[list[Any]], units: Any, place: int, arguments: dict[str, Any]) -> None:
        """Set or add units * the number whose digits, most significant first, have these sums."""
        total = builder.sitofp(self.total_of(builder, sums[0]), self.floats)
        for slots in sums[1:]:
            digit = builder.sitofp(self.total_of(builder, slots), self.floats)
            total = _multiply_add(builder, total, ir.Constant(self.floats, [256.0] * self.lanes), digit)
        pointer = builder.bitcast(builder.gep(arguments["sums"], [_INT64(place)]), self.floats.as_pointer())
        zero = ir.Constant(self.floats, [0.0] * self.lanes)
        old = builder.select(arguments["first"], zero, builder.load(pointer, align=4))
        builder.store(_multiply_add(builder, total, units, old), pointer, align=4)

    def in_row_order(self, builder: Any, sums: Any) -> list[tuple[int, Any]]:
        """The 128 sums that a pass left at a float32 pointer, as registers with the row of their first lane."""
        moved = []
        for vector in range(self.vectors):
            for field in range(self.fields):
                pointers = [builder.gep(sums, [_INT64(self._place(vector, field, i))]) for i in range(4)]
                columns = [builder.load(builder.bitcast(p, self.floats.as_pointer()), align=4) for p in pointers]
                for m, values in enumerate(_transpose_4x4(builder, columns, self.lanes)):
                    moved.append((32 * m + 4 * self.bits * field + self.lanes * vector, values))
        return moved


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
