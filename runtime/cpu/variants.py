"""Which kernels run: chosen once by what the CPU has, or by `$ZIGPASS_CPU_VARIANT`.

- `avx512_vnni`: integer dot products on 512-bit registers (integer_gemv.py, dot_tile.py).
- `avx2`: the same in pairs of instructions on 256-bit registers (avx2_tile.py).
- `portable`: float32 products in LLVM's portable vectors (gemv.py), which become SSE or NEON where the CPU has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from ..errors import ZigpassError
from .activation_dtype import current_digits
from .compile import Kernel, target_features

VARIANT_VARIABLE: Final = "ZIGPASS_CPU_VARIANT"
AVX512_VNNI: Final = "avx512_vnni"
AVX2: Final = "avx2"
PORTABLE: Final = "portable"
_NEEDED: Final[dict[str, frozenset[str]]] = {
    AVX512_VNNI: frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}),
    AVX2: frozenset({"avx2", "fma", "f16c"}),
    PORTABLE: frozenset(),
}
"""What each variant needs of the CPU, best first."""
VARIANTS: Final = tuple(_NEEDED)

_MOST_ROWS: Final = {AVX512_VNNI: 24, AVX2: 16, PORTABLE: 1}
"""2048x2048, one thread, scales along the inputs and the outputs: on an Intel server with AVX-512 a row takes 0.11 and
0.16 ms, and 32 rows as a matrix 4.9 and 4.6 ms; with AVX2 on a Zen 4 a row takes 0.19 and 0.25, 16 as a matrix 4.2 and
5.2. Float kernels gain nothing from several rows: two take as long as the matrix."""


class Variant:
    """One set of kernels; they are compiled, or read from disk, when first called.

    Attributes:
        most_rows: rows of x up to which packed weights are multiplied row by row; more are multiplied as a matrix.
    """

    def __init__(self, name: str) -> None:
        from .mlp import make_mlp
        from .project import make_project

        self.name = name
        self._integers = name != PORTABLE
        self.most_rows = _MOST_ROWS[name]
        gemv = _gemv(name)
        self.project: Kernel = make_project(name, gemv)
        self.mlp: Kernel = make_mlp(name, gemv)

    def digits(self) -> int:
        """Digits of an input as an integer (fixed_point.py); 0 when the kernels multiply floats."""
        return current_digits() if self._integers else 0


def available_variants() -> tuple[str, ...]:
    """The variants that this CPU can run, best first."""
    features = target_features()
    return tuple(name for name, needed in _NEEDED.items() if features >= needed)


def set_variant(name: str | None) -> None:
    """Run one variant from now on; None goes back to `$ZIGPASS_CPU_VARIANT` or the best one.

    Raises:
        ZigpassError: an unknown name, or a variant that this CPU cannot run.
    """
    global _current
    _current = _get(name or os.environ.get(VARIANT_VARIABLE) or available_variants()[0])


def current_variant() -> Variant:
    """The variant that ops run."""
    if _current is None:
        set_variant(None)
    assert _current is not None
    return _current


_current: Variant | None = None
_made: dict[str, Variant] = {}


def _get(name: str) -> Variant:
    if name not in available_variants():
        known = "an unknown variant" if name not in VARIANTS else "not something that this CPU can run"
        raise ZigpassError(f"CPU variant {name!r} is {known}; available here: {', '.join(available_variants())}")
    if name not in _made:
        _made[name] = Variant(name)
    return _made[name]


def _gemv(name: str) -> Callable[..., Any]:
    if name == PORTABLE:
        from .gemv import gemv

        return gemv
    from .avx2_tile import Avx2Tile
    from .dot_tile import Tile
    from .integer_gemv import make_integer_gemv

    return make_integer_gemv(Tile if name == AVX512_VNNI else Avx2Tile)
