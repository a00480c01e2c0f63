"""Plain magnitude: the entries nearest to 0 are not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from zigpass.calibration import Calibration


class Magnitude:
    """Score |x_k|: one float per site, and at least as good as the weighted rules on every model measured so far."""

    name = "magnitude"

    def column_weights(self, calibration: Calibration) -> dict[str, Tensor] | None:
        return None
