"""Spread by sensitivity: one level of the loss that second derivatives predict, over all columns of all sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .budget import Budget, Spread

if TYPE_CHECKING:
    from zigpass.calibration import Calibration
    from zigpass.rules import Rule


class SensitivityAllocation:
    """Each column is scored by the loss its omission predicts per byte it saves: x_k^2 * E[gradient_k^2] / bytes.

    One level over all columns of all sites says how sparse each site becomes; inside a site the rule decides. It takes
    one backward pass and is not checked against a measurement: on some models it loses to uniform (`measured` does
    not).
    """

    name = "sensitivity"

    def spread(self, calibration: Calibration, rule: Rule, budget: Budget) -> Spread:
        weights = {
            name: (gradient * calibration.sites[name].features / budget.num_bytes[name]).sqrt()
            for name, gradient in calibration.squared_gradients().items()
        }
        scores = calibration.scores("sensitivity per byte", weights)
        return Spread(budget.fill(lambda name, level: scores[name].fraction_below(level)), self.name)
