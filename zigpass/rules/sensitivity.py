"""Sensitivity: an entry counts for more when the model's output depends on it more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from zigpass.calibration import Calibration


class Sensitivity:
    """Score |x_k| * root of the mean squared gradient of entry k: the KL that dropping it costs, to second order."""

    name = "sensitivity"

    def column_weights(self, calibration: Calibration) -> dict[str, Tensor] | None:
        return {name: gradient.sqrt() for name, gradient in calibration.squared_gradients().items()}
