"""What a rule is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from zigpass.calibration import Calibration


class Rule(Protocol):
    """Scores entry k of an activation by |x_k| * weight_k; entries with a score below one number are not read.

    The weights are fixed before decoding, so the rule folds into the threshold: number / weight_k, 1 or K floats.
    """

    name: str

    def column_weights(self, calibration: Calibration) -> dict[str, Tensor] | None:
        """Weights by site name, float32 [K] and not negative; None where every weight is 1."""


def fold(number: float, weights: Tensor | None) -> Tensor:
    """The threshold on |x| that drops entries whose score is below a number, float32 with 1 or K entries.

    A column of weight 0 is never read; its threshold is the largest float32, because thresholds are finite.
    """
    if weights is None:
        return torch.tensor([number])
    return (number / weights.cpu()).nan_to_num(nan=0.0).clamp(max=torch.finfo(torch.float32).max)
