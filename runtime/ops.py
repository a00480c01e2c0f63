"""The zigpass operators: schemas, shapes, dispatch.

Three fused ops in the namespace `zigpass`: `linear`, `qkv` and `gated_mlp`; `zigpass.runtime.reference` says what they
compute. Importing this module defines them; torch's dispatcher picks the implementation by device. They are inference
ops: differentiating through one raises.

A weight travels as the list of its packed tensors plus one layout word (`Layout.spec`), so a graph dump shows what
each weight is and a new tensor per weight needs no new schema.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .direct import direct_call
from .errors import ZigpassError
from .layout import Layout
from .reference import ACTIVATIONS, split_weights

NAMESPACE = "zigpass"
OPS = ("linear", "qkv", "gated_mlp")

# Library.define/impl, not the custom_op decorator: that one costs two to four times more per call.
_library = torch.library.Library(NAMESPACE, "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library.define(
    "linear(Tensor x, Tensor[] weight, Tensor? bias, Tensor? threshold, str layout) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "qkv(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor? threshold, str[] layouts) -> Tensor[]",
    tags=_TAGS,
)
_library.define(
    "gated_mlp(Tensor x, Tensor[] gate, Tensor[] up, Tensor[] down, Tensor? gate_bias, Tensor? up_bias,"
    " Tensor? down_bias, Tensor? threshold_in, Tensor? threshold_mid, str gate_layout, str up_layout,"
    " str down_layout, str activation) -> Tensor",
    tags=_TAGS,
)

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes x may have; results come in the same one."""


def check_linear(x: Tensor, weight: Sequence[Tensor], threshold: Tensor | None, spec: str) -> Layout:
    """Raise `ZigpassError` unless x, the packed tensors and the threshold fit the layout; return the layout.

    Runs when a graph is traced, and in every implementation before it touches memory.
    """
    layout = Layout.parse(spec)
    if x.dtype not in SUPPORTED_DTYPES:
        raise ZigpassError(f"x has dtype {x.dtype}, zigpass ops take {SUPPORTED_DTYPES}")
    if not x.dim():
        raise ZigpassError(f"x is a number, the weight {layout.spec} takes [..., K] with K={layout.k}")
    if x.shape[-1] != layout.k:
        raise ZigpassError(f"x has {x.shape[-1]} features, the weight {layout.spec} has K={layout.k}")
    if len(weight) != layout.num_tensors:
        raise ZigpassError(f"{layout.spec} needs {layout.num_tensors} tensors, got {len(weight)}")
    if weight[0].shape[0] != layout.num_code_words or weight[1].shape[0] != layout.num_scales:
        raise ZigpassError(
            f"{layout.spec} needs {layout.num_code_words} code words and {layout.num_scales} scales,"
            f" got {tuple(weight[0].shape)} and {tuple(weight[1].shape)}"
        )
    if layout.permuted and (weight[3].dtype != torch.int32 or weight[3].numel() != layout.k):
        raise ZigpassError(
            f"perm of {layout.spec} is {weight[3].dtype} {tuple(weight[3].shape)}, expected torch.int32 {(layout.k,)}"
        )
    if threshold is not None:
        _check_threshold(threshold, layout)
    return layout


def _check_threshold(threshold: Tensor, layout: Layout) -> None:
    if threshold.dtype != reference.COUNT_DTYPE:
        if threshold.numel() not in (1, layout.k):
            raise ZigpassError(f"threshold has {threshold.numel()} entries, {layout.spec} takes 1 or {layout.k}")
        return
    if threshold.numel() != 1:
        raise ZigpassError(f"a threshold that is a count has one entry, got {threshold.numel()} for {layout.spec}")


def check_mlp(
    x: Tensor,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    down: Sequence[Tensor],
    threshold_in: Tensor | None,
    threshold_mid: Tensor | None,
    gate_layout: str,
    up_layout: str,
    down_layout: str,
    activation: str,
) -> tuple[Layout | None, Layout, Layout]:
    """As `check_linear`, for the three weights of a gated MLP; the gate's layout is None when there is no gate."""
    if activation not in ACTIVATIONS:
        raise ZigpassError(f"unknown activation {activation!r}, expected one of {sorted(ACTIVATIONS)}")
    gate_parsed = check_linear(x, gate, threshold_in, gate_layout) if gate else None
    up_parsed = check_linear(x, up, threshold_in, up_layout)
    if gate_parsed is not None and gate_parsed.n != up_parsed.n:
        raise ZigpassError(f"gate and up have different row counts ({gate_parsed.n}, {up_parsed.n})")
    middle = x.new_empty((0, up_parsed.n))
    return gate_parsed, up_parsed, check_linear(middle, down, threshold_mid, down_layout)


def _linear_fake(
    x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], check_linear(x, weight, threshold, layout).n))


def _qkv_fake(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[str],
) -> list[Tensor]:
    parts = split_weights(weights, layouts)
    return [
        x.new_empty((*x.shape[:-1], check_linear(x, part, threshold, spec).n))
        for part, spec in zip(parts, layouts, strict=True)
    ]


def _gated_mlp_fake(
    x: Tensor,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    down: Sequence[Tensor],
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    threshold_in: Tensor | None,
    threshold_mid: Tensor | None,
    gate_layout: str,
    up_layout: str,
    down_layout: str,
    activation: str,
) -> Tensor:
    layouts = (gate_layout, up_layout, down_layout)
    checked = check_mlp(x, gate, up, down, threshold_in, threshold_mid, *layouts, activation)
    return x.new_empty((*x.shape[:-1], checked[-1].n))


torch.library.register_fake("zigpass::linear", _linear_fake, lib=_library)
torch.library.register_fake("zigpass::qkv", _qkv_fake, lib=_library)
torch.library.register_fake("zigpass::gated_mlp", _gated_mlp_fake, lib=_library)


def _raise_in_backward(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"zigpass::{name} is an inference op and has no backward; run the model under torch.inference_mode()"
        )

    return backward


# Without a formula autograd would drop the gradients silently (x.grad stays None).
for _name in OPS:
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _raise_in_backward(_name), lib=_library)


def _on_first_call(device: str, name: str) -> Callable[..., Any]:
    """An implementation imported at its first call, so that importing zigpass imports neither Numba nor CUDA."""
    resolved: Callable[..., Any] | None = None

    def call(*args: Any) -> Any:
        nonlocal resolved
        if resolved is None:
            resolved = getattr(importlib.import_module(f".{device}", __package__), name)
        return resolved(*args)

    return call


for _name in OPS:
    _on_cpu, _packet = _on_first_call("cpu", _name), getattr(torch.ops.zigpass, _name)
    _library.impl(_name, _on_cpu, "CPU")
    _library.impl(_name, _on_first_call("cuda", _name), "CUDA")
    _packet.direct_cpu = direct_call(_packet.default, _on_cpu)

__all__ = ["NAMESPACE", "OPS", "SUPPORTED_DTYPES", "check_linear", "check_mlp", "reference"]
