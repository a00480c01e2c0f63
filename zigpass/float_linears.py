"""Float linears: the modules that `quantize_` replaces, whatever class they are of."""

from __future__ import annotations

from torch import Tensor, nn

SAME_AS_LINEAR = frozenset({"FalconLinear"})
"""Subclasses of `nn.Linear` in transformers that compute what it does; any other may compute something else."""


def is_float_linear(module: nn.Module) -> bool:
    """Whether a module computes x W^T + b and nothing else.

    That is `nn.Linear` itself, transformers' `Conv1D` (GPT-2), and the subclasses known to be no more than a linear.
    """
    return type(module) is nn.Linear or is_conv1d(module) or _is_of_transformers(module, SAME_AS_LINEAR)


def is_conv1d(module: nn.Module) -> bool:
    """transformers' `Conv1D`, a linear that holds its weight as [K, N]."""
    return _is_of_transformers(module, {"Conv1D"})


def weight_of(module: nn.Module) -> Tensor:
    """The weight as [N, K]; for `Conv1D` a transposed view."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.t() if is_conv1d(module) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    return bias


def _is_of_transformers(module: nn.Module, names: frozenset[str] | set[str]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.partition(".")[0] == "transformers"
