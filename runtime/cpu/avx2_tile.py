"""The inner loop of the integer kernels for AVX2, which has no instruction for four products at once.

Two instructions take its place: one adds pairs of products of bytes to 16-bit sums, and at the end of a pass another
one adds pairs of those. Codes of more than 4 bits are cut into halves, so that no 16-bit sum can overflow. The results
are those of the other integer kernels, bit for bit.

4096x11008 compiled for an AVX2 CPU, 50 % active, one thread of a Zen 4: float32 activations 1.19 ms, int8 0.70; the
portable kernels take 1.88.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .dot_tile import CHUNK_COLUMNS, MOST_CHUNKS, Tile

_LARGEST_HALF = 15
# A 16-bit sum takes two of the four columns of each chunk; digits are signed bytes.
assert MOST_CHUNKS * CHUNK_COLUMNS // 2 * _LARGEST_HALF * 128 < 1 << 15

_SHORTS = ir.VectorType(ir.IntType(16), 16)
_BYTES = ir.VectorType(ir.IntType(8), 32)


class Avx2Tile(Tile):
    """As `Tile`, on 256-bit registers without VNNI."""

    name = "avx2"
    most_lanes = 8
    most_sums = 6
    """Of 16 registers; the columns, the codes and the digits take the others. With 12 it takes three times as long."""

    def __init__(self, bits: int, digits: int) -> None:
        super().__init__(bits, digits)
        self.slots = 2 if bits == 8 else 1

    def codes_of(self, builder: Any, quad: Any, field: int) -> Any:
        """One code per byte, shifted down: the products of larger numbers would overflow."""
        if self.fields == 1:
            return quad
        shifted = builder.lshr(quad, self.constant(self.bits * field)) if field else quad
        return builder.and_(shifted, self.constant(((1 << self.bits) - 1) * 0x01010101))

    def unit_of(self, field: int) -> float:
        return 1.0

    def add_dot(self, builder: Any, slots: list[Any], codes: Any, digits: Any) -> None:
        halves = [codes]
        if self.slots == 2:
            low = self.constant(_LARGEST_HALF * 0x01010101)
            halves = [builder.and_(codes, low), builder.and_(builder.lshr(codes, self.constant(4)), low)]
        kind = ir.FunctionType(_SHORTS, [_BYTES] * 2)
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.ub.sw")
        factor = builder.bitcast(digits, _BYTES)
        for slot, half in zip(slots, halves, strict=True):
            products = builder.call(multiply, [builder.bitcast(half, _BYTES), factor])
            total = builder.add(builder.bitcast(builder.load(slot), _SHORTS), products)
            builder.store(builder.bitcast(total, self.words), slot)

    def total_of(self, builder: Any, slots: list[Any]) -> Any:
        kind = ir.FunctionType(self.words, [_SHORTS] * 2)
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        ones = ir.Constant(_SHORTS, [1] * 16)
        sums = [builder.call(multiply, [builder.bitcast(builder.load(slot), _SHORTS), ones]) for slot in slots]
        return sums[0] if len(sums) == 1 else builder.add(sums[0], builder.shl(sums[1], self.constant(4)))
