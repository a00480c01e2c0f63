"""Rules: how the entries of an activation are scored, to decide which are not read. One file per rule."""

from .column_norm import ColumnNorm
from .magnitude import Magnitude
from .rule import Rule
from .sensitivity import Sensitivity

RULES: dict[str, Rule] = {rule.name: rule for rule in (Magnitude(), ColumnNorm(), Sensitivity())}
"""All rules by name, the default first."""

__all__ = ["RULES", "Rule"]
