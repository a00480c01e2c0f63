"""Allocations: how a target sparsity is spread over the sites. One file per allocation."""

from .allocation import Allocation
from .measured import Measured
from .sensitivity import SensitivityAllocation
from .teal import Teal
from .uniform import Uniform

ALLOCATIONS: dict[str, Allocation] = {
    allocation.name: allocation for allocation in (Measured(), Uniform(), Teal(), SensitivityAllocation())
}
"""All allocations by name, the default first."""

__all__ = ["ALLOCATIONS", "Allocation"]
