"""Calls of an operator's implementation without torch's dispatcher.

The dispatcher takes every list of tensors and every string apart and hands Python new ones: 3.4 us of a call of
`linear`, 6.4 of `qkv` or `gated_mlp`. A compiled graph knows its tensors and their device, so its calls need not go
that way. `torch.ops.zigpass.<op>.direct_cpu` is where compiled graphs find these functions (zigpass/inductor_calls.py):
there as soon as the operators are, also for a graph that Inductor takes from its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_profiling = torch._C._autograd._profiler_enabled
_number_of_modes = torch._C._len_torch_dispatch_stack


def direct_call(op: Callable[..., Any], implementation: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls the implementation; the operator where somebody watches operators.

    Args:
        op: an overload of an operator, with positional arguments only.
        implementation: what the dispatcher would call for plain tensors of one device, gradients aside.
    """

    def call(*args: Any) -> Any:
        if _profiling() or _number_of_modes():  # together 0.08 us
            return op(*args)
        return implementation(*args)

    return call
