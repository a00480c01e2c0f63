"""What a multiprocessor of an NVIDIA architecture holds, and how many blocks of a kernel that makes.

The numbers are from the CUDA C++ programming guide, table "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

import dataclasses
from typing import Final

REGISTERS: Final = 65536
"""Of a multiprocessor, on every architecture here."""
WARP_REGISTER_UNIT: Final = 256
"""Registers are given to a warp in pieces of this many."""
RESERVED_SHARED: Final = 1024
"""Bytes of shared memory that the system keeps of each block, from sm_80 on."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Limits of one multiprocessor.

    Attributes:
        warps, blocks: most resident at once.
        shared: bytes of shared memory; `shared_per_block`: most that a block may ask for.
        multiprocessors: of a usual GPU of this architecture: T4, A100, RTX 3090, RTX 4090, H200, B200, RTX 5090.
    """

    warps: int
    blocks: int
    shared: int
    shared_per_block: int
    multiprocessors: int


ARCHITECTURES: Final[dict[int, Architecture]] = {
    75: Architecture(32, 16, 64 << 10, 64 << 10, 40),
    80: Architecture(64, 32, 164 << 10, 163 << 10, 108),
    86: Architecture(48, 16, 100 << 10, 99 << 10, 82),
    89: Architecture(48, 24, 100 << 10, 99 << 10, 128),
    90: Architecture(64, 32, 228 << 10, 227 << 10, 132),
    100: Architecture(64, 32, 228 << 10, 227 << 10, 148),
    120: Architecture(48, 24, 100 << 10, 99 << 10, 170),
}


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """Blocks that a multiprocessor holds, what limits them, and the share of its warps that they are."""

    blocks: int
    limit: str
    share: float


def occupancy(architecture: Architecture, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """How many blocks of this many threads, registers a thread and bytes of shared memory fit."""
    warps = -(-threads // 32)
    warp_registers = -(-registers * 32 // WARP_REGISTER_UNIT) * WARP_REGISTER_UNIT
    reserved = RESERVED_SHARED if architecture.shared > architecture.shared_per_block else 0
    limits = {
        "threads": architecture.warps // warps,
        "registers": REGISTERS // warp_registers // warps,
        "shared memory": architecture.shared // (shared_bytes + reserved),
        "blocks": architecture.blocks,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limit, limits[limit] * warps / architecture.warps)
