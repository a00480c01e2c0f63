"""The same sparsity everywhere ("unified" in the paper, section "calibration")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .budget import Budget, Spread

if TYPE_CHECKING:
    from zigpass.calibration import Calibration
    from zigpass.rules import Rule


class Uniform:
    """Every site that is not pinned or capped gets the same sparsity."""

    name = "uniform"

    def spread(self, calibration: Calibration, rule: Rule, budget: Budget) -> Spread:
        return Spread(budget.fill(lambda name, level: level), self.name)
