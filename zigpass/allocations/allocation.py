"""What an allocation is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .budget import Budget, Spread

if TYPE_CHECKING:
    from zigpass.calibration import Calibration
    from zigpass.rules import Rule


class Allocation(Protocol):
    """Spreads a budget over the sites."""

    name: str

    def spread(self, calibration: Calibration, rule: Rule, budget: Budget) -> Spread:
        """Sparsities that meet the budget.

        Raises:
            ZigpassError: the model or the text does not allow this allocation.
        """
