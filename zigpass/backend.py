"""`torch.compile(model, backend="zigpass")`.

The graph that Dynamo captured is copied, the copy is rewritten by the passes, and Inductor compiles the result. A
model without a match runs all the same, with one warning that says why nothing matched.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from zigpass import passes
from zigpass.passes import Context

from .backend_error import BackendError
from .compile_log import CompileLog
from .inductor_calls import write_direct_calls
from .inductor_options import decode_options
from .options import BackendOptions, read_options
from .rewrite_graph import count_packed, rewrite_graph, why_nothing
from .runtime_weights import RuntimeWeights, clear_cache

MAX_REASONS = 5
"""Reasons that a warning lists before it says how many more there are."""


class ZigpassWarning(UserWarning):
    """A model runs, but not the way its user probably meant it to."""


def zigpass_backend(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The Dynamo backend. Torch finds it by the entry point; `BackendOptions` lists the options.

    Raises:
        BackendError: an option is wrong, or `require_match` is set and a graph has no packed linear.
    """
    settings = read_options(mode, options)
    rewritten = passes.clone_graph_module(gm)
    if needs_gradient(example_inputs):
        return _compile_without_rewriting(rewritten, example_inputs, settings)
    watch = CompileLog(rewritten)
    start = time.perf_counter()
    weights = RuntimeWeights(rewritten, example_inputs)
    contexts = rewrite_graph(rewritten, settings.skip, packer=weights, observe=watch.observe)
    rewriting = time.perf_counter() - start
    watch.rewritten(contexts)
    _complain(contexts, settings)
    start = time.perf_counter()
    defaults = decode_options(contexts, example_inputs)
    compiled = below_autograd(weights.bind(_compile(rewritten, weights.example_inputs, settings, defaults)))
    watch.compiled(contexts, rewriting, time.perf_counter() - start if settings.inner == "inductor" else None)
    return compiled


def below_autograd(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """A graph without gradients, run so that autograd does not look at every call of an operator.

    Under `torch.no_grad()`, which Hugging Face's `generate` uses, it would, in Python: 30 linears of 64 x 64 on a CPU
    take 0.70 ms with it and 0.45 without. Under `torch.inference_mode()` it never does.
    """

    def run(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return compiled(*inputs)

    return run


def needs_gradient(example_inputs: Sequence[Any]) -> bool:
    """Whether autograd would record this graph; the fused ops have no backward."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in example_inputs
    )


def _compile(
    gm: GraphModule, example_inputs: Sequence[Any], settings: BackendOptions, defaults: Mapping[str, Any]
) -> Callable[..., Any]:
    if settings.inner == "eager":
        return gm.forward
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    write_direct_calls()
    mode = settings.mode if settings.mode != "default" else None
    patches = {**defaults, **(list_mode_options(mode) if mode else {}), **settings.inductor}
    compiled: Callable[..., Any] = compile_fx(gm, example_inputs, config_patches=patches or None)
    return compiled


def _compile_without_rewriting(
    gm: GraphModule, example_inputs: Sequence[Any], settings: BackendOptions
) -> Callable[..., Any]:
    """Gradients are wanted: leave the graph as it is.

    A graph with packed linears runs uncompiled. Inductor would trace its backward now and fail, although the user
    may only want the forward; run as it is, the forward works and a backward raises.
    """
    packed = count_packed(gm)
    consequence = f"its {packed} packed linears run uncompiled" if packed else "it is compiled without zigpass"
    warnings.warn(
        f"zigpass: a graph was captured with gradients enabled, so {consequence};"
        " call the model under torch.inference_mode() or torch.no_grad()",
        ZigpassWarning,
        stacklevel=2,
    )
    return gm.forward if packed else _compile(gm, example_inputs, settings, {})


def _complain(contexts: list[Context], settings: BackendOptions) -> None:
    """A warning or an error when nothing matched that should have."""
    reasons = why_nothing(contexts)
    if reasons is None:
        return
    more = [f"and {len(reasons) - MAX_REASONS} more"] if len(reasons) > MAX_REASONS else []
    message = "zigpass found nothing to speed up in this graph: " + "; ".join([*reasons[:MAX_REASONS], *more])
    if settings.require_match:
        raise BackendError(message)
    warnings.warn(message, ZigpassWarning, stacklevel=2)


zigpass_backend.reset = clear_cache  # type: ignore[attr-defined]  # `torch._dynamo.reset` calls it
