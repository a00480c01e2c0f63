"""What a causal language model calls the key-value cache among its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""transformers 5.24 renamed the second to the first; older versions and models kept outside of it have the second."""


def cache_argument(model: nn.Module) -> str | None:
    """The name of the forward argument that takes the cache; None for a model that keeps none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def cache_arguments(model: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """Keyword arguments that let a model use and extend a cache, under the name that it has for it.

    Args:
        model: a causal language model, compiled or not; what hides its arguments gets the older name.
    """
    module = getattr(model, "_orig_mod", model)  # of torch.compile
    name = cache_argument(module) if isinstance(module, nn.Module) else None
    return {name or CACHE_ARGUMENTS[-1]: cache, "use_cache": True}
