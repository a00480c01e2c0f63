"""What a causal language model calls the key-value cache among its arguments."""

from __future__ import annotations

import inspect

from torch import nn

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""transformers 5.24 renamed the second to the first; older versions and models kept outside of it have the second."""


def cache_argument(model: nn.Module) -> str | None:
    """The name of the forward argument that takes the cache; None for a model that keeps none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)
