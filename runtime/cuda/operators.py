"""The three ops on CUDA: `reference` says what they compute.

One row: predict and sparse GEMV in one kernel, prepared once per weight (`calls`). Up to `DENSE_ROWS` rows: dense GEMV
over several rows. More: plain numbers and a GEMM. The choice looks at shapes only, never at data, so nothing waits for
the GPU and every path can be recorded in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ZigpassError
from ..layout import Layout
from ..ops import check_linear, check_mlp
from ..reference import ACTIVATIONS, is_decode, mask_inactive, split_weights
from .calls import (
    LinearsCall,
    MlpCall,
    current_device,
    linears_calls,
    mlp_calls,
    operands_key,
    output,
    threshold_key,
    x_key,
)
from .checks import check_operands
from .device import ensure_context, get_device
from .formats import ACTIVATION_CODES, FORMATS, NONE
from .gemv import PreparedGemv, launch_gemv
from .launch import current_stream
from .launches import launch_runs
from .plan import chain, get_plan, weight_kind
from .prefill import dequantized_matmul
from .selection import is_count, keep_largest
from .specialization import WeightKind, max_rows

DENSE_ROWS = 8
"""Rows that still go through the GEMV; a GEMM reads the weight once more as plain numbers, four times larger."""


def linear(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str) -> Tensor:
    """As `reference.linear`."""
    key = (layout, x_key(x), threshold_key(threshold), operands_key(weight), operands_key((bias,)))
    call = linears_calls.known.get(key)
    if call is not None:
        return call.run_one(x, threshold)
    return qkv(x, weight, (bias,), threshold, (layout,))[0]


def qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[str],
) -> list[Tensor]:
    """As `reference.qkv`; weights of one kind share a launch."""
    key = (*layouts, x_key(x), threshold_key(threshold), operands_key(weights), operands_key(biases))
    call = linears_calls.known.get(key)
    if call is not None:
        return call.run(x, threshold)
    if _elsewhere(x):
        with torch.cuda.device(x.device):
            return qkv(x, weights, biases, threshold, layouts)
    parts = split_weights(weights, layouts)
    parsed = [check_linear(x, part, threshold, spec) for part, spec in zip(parts, layouts, strict=True)]
    if sum(map(len, parts)) != len(weights):
        raise ZigpassError(f"{', '.join(layouts)} need {sum(map(len, parts))} tensors, got {len(weights)}")
    check_operands(x, parts, biases, [threshold], parsed)
    ensure_context()
    if not is_decode(x):
        return _linears(x, parts, biases, None, parsed, x.dtype)
    if threshold is not None and is_count(threshold):
        kept, per_channel = keep_largest(x, threshold)
        return qkv(kept, weights, biases, per_channel, layouts)
    if not _contiguous(x, threshold, *biases):
        copies = [_as_contiguous(bias) for bias in biases]
        return qkv(x.contiguous(), weights, copies, _as_contiguous(threshold), layouts)
    kinds = [kind for kind in map(weight_kind, parsed, parts) if kind is not None]
    if len(kinds) < len(parts):
        return _linears(x, parts, biases, threshold, parsed, x.dtype)
    call = _prepare_linears(x, parts, biases, threshold, parsed, kinds)
    linears_calls.keep(key, call)
    return call.run(x, threshold)


def gated_mlp(
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
    """As `reference.gated_mlp`. One row: two launches, the second forms the middle while it selects from it.

    A `threshold_mid` that is a count needs the whole middle first, so nothing is fused then.
    """
    key = (
        gate_layout, up_layout, down_layout, activation, x_key(x),
        threshold_key(threshold_in), threshold_key(threshold_mid),
        operands_key(gate), operands_key(up), operands_key(down), operands_key((gate_bias, up_bias, down_bias)),
    )  # fmt: skip
    call = mlp_calls.known.get(key)
    if call is not None:
        return call.run(x, threshold_in, threshold_mid)
    layouts = (gate_layout, up_layout, down_layout)
    weights, biases = (gate, up, down), (gate_bias, up_bias, down_bias)
    if _elsewhere(x):
        with torch.cuda.device(x.device):
            return gated_mlp(x, *weights, *biases, threshold_in, threshold_mid, *layouts, activation)
    gate_parsed, up_parsed, down_parsed = check_mlp(
        x, gate, up, down, threshold_in, threshold_mid, *layouts, activation
    )
    first = [up] if gate_parsed is None else [gate, up]
    first_biases = [up_bias] if gate_parsed is None else [gate_bias, up_bias]
    first_layouts = [up_parsed] if gate_parsed is None else [gate_parsed, up_parsed]
    check_operands(
        x,
        [*first, down],
        [*first_biases, down_bias],
        [threshold_in, threshold_mid],
        [*first_layouts, down_parsed],
    )
    ensure_context()
    decode = is_decode(x)
    if decode and threshold_in is not None and is_count(threshold_in):
        kept, per_channel = keep_largest(x, threshold_in)
        return gated_mlp(kept, *weights, *biases, per_channel, threshold_mid, *layouts, activation)
    kinds = {weight_kind(layout, tensors) for layout, tensors in zip(first_layouts, first, strict=True)}
    down_kind = weight_kind(down_parsed, down)
    kind = kinds.pop() if len(kinds) == 1 else None
    if decode and kind is not None and down_kind is not None and not is_count(threshold_mid):
        if not _contiguous(x, threshold_in, threshold_mid, *biases):
            gate_bias, up_bias, down_bias, threshold_in, threshold_mid = (
                _as_contiguous(operand) for operand in (*biases, threshold_in, threshold_mid)
            )
            biases = gate_bias, up_bias, down_bias
            return gated_mlp(x.contiguous(), *weights, *biases, threshold_in, threshold_mid, *layouts, activation)
        call = _prepare_mlp(
            x, first, first_biases, first_layouts, kind, threshold_in,
            down, down_bias, down_parsed, down_kind, threshold_mid, activation,
        )  # fmt: skip
        mlp_calls.keep(key, call)
        return call.run(x, threshold_in, threshold_mid)
    # Few rows keep the middle in float32; a GEMM takes it in x's dtype, as a plain model does.
    middle_dtype = torch.float32 if _num_rows(x) <= DENSE_ROWS else x.dtype
    parts = _linears(x, first, first_biases, threshold_in, first_layouts, middle_dtype)
    middle = ACTIVATIONS[activation](parts[0])
    if gate_parsed is not None:
        middle = middle * parts[1]
    return _linears(middle, [down], [down_bias], threshold_mid, [down_parsed], x.dtype)[0]


def _elsewhere(x: Tensor) -> bool:
    """Whether x lies on another GPU than the current one."""
    index = x.get_device()
    return index >= 0 and index != current_device()


def _contiguous(*operands: Tensor | None) -> bool:
    return all(operand is None or operand.is_contiguous() for operand in operands)


def _as_contiguous(operand: Tensor | None) -> Tensor | None:
    return operand if operand is None else operand.contiguous()


def _num_rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def _linears(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[Layout],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Several weights over one x [..., K], results in `dtype`; the threshold applies when x is one row."""
    rows = _num_rows(x)
    shapes = [(*x.shape[:-1], layout.n) for layout in layouts]
    if rows == 0:
        return [x.new_empty(shape, dtype=dtype) for shape in shapes]
    flat = x.contiguous().view(rows, x.shape[-1])
    threshold = None if threshold is None or rows > 1 else threshold.contiguous()
    if threshold is not None and is_count(threshold):
        flat, threshold = keep_largest(flat, threshold)
    biases = [_as_contiguous(bias) for bias in biases]
    kinds = [weight_kind(layout, tensors) for layout, tensors in zip(layouts, weights, strict=True)]
    outs: list[Tensor] = []
    for start, end in launch_runs(kinds):
        kind = kinds[start]
        part = slice(start, end)
        if kind is None or rows > DENSE_ROWS:
            for tensors, bias, layout in zip(weights[part], biases[part], layouts[part], strict=True):
                masked = flat if threshold is None else mask_inactive(flat.float(), threshold).to(flat.dtype)
                outs.append(dequantized_matmul(masked, layout, tensors, bias).to(dtype))
        else:
            outs += _gemv(flat, kind, weights[part], biases[part], threshold, layouts[part], dtype)
    return [out.view(shape) for out, shape in zip(outs, shapes, strict=True)]


def _gemv(
    x: Tensor,
    kind: WeightKind,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[Layout],
    dtype: torch.dtype,
) -> list[Tensor]:
    rows, k = x.shape
    outs = [x.new_empty((rows, layout.n), dtype=dtype) for layout in layouts]
    specs = tuple(layout.spec for layout in layouts)
    most = 1 if kind.scale_axis_out else max_rows(kind.bits, get_device(x.device.index).arch)
    for start in range(0, rows, most):
        count = min(most, rows - start)
        plan = get_plan(
            x.device.index, kind, specs, FORMATS[x.dtype], FORMATS[dtype], threshold is not None,
            1 if count == 1 else 2 if count == 2 else 4,
        )  # fmt: skip
        addresses = [
            out.data_ptr() + start * layout.n * out.element_size() for out, layout in zip(outs, layouts, strict=True)
        ]
        launch_gemv(plan, weights, biases, threshold, x.data_ptr() + start * k * x.element_size(), addresses, count)
    return outs


def _prepare_linears(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[Layout],
    kinds: Sequence[WeightKind],
) -> LinearsCall:
    """One row over weights that have a kernel each; all operands contiguous."""
    index, per_channel = x.device.index, threshold is not None and threshold.numel() > 1
    launches = []
    for start, end in launch_runs(kinds):
        part = slice(start, end)
        specs = tuple(layout.spec for layout in layouts[part])
        x_format = FORMATS[x.dtype]
        plan = get_plan(index, kinds[start], specs, x_format, x_format, threshold is not None, 1)
        gemv = PreparedGemv(plan, weights[part], biases[part], 1, current_stream(index), per_channel)
        launches.append((gemv, [output((*x.shape[:-1], layout.n), x.dtype) for layout in layouts[part]]))
    return LinearsCall(launches)


def _prepare_mlp(
    x: Tensor,
    first: Sequence[Sequence[Tensor]],
    first_biases: Sequence[Tensor | None],
    first_layouts: Sequence[Layout],
    kind: WeightKind,
    threshold_in: Tensor | None,
    down: Sequence[Tensor],
    down_bias: Tensor | None,
    down_layout: Layout,
    down_kind: WeightKind,
    threshold_mid: Tensor | None,
    activation: str,
) -> MlpCall:
    """One row: gate and up leave partial sums, down adds them up, activates, selects and multiplies."""
    index, has_gate, stream = x.device.index, len(first) == 2, current_stream(x.device.index)
    specs = tuple(layout.spec for layout in first_layouts)
    up_plan = get_plan(index, kind, specs, FORMATS[x.dtype], NONE, threshold_in is not None, 1)
    down_plan = get_plan(
        index, down_kind, (down_layout.spec,), NONE, FORMATS[x.dtype], threshold_mid is not None, 1,
        has_gate, ACTIVATION_CODES[activation], up_plan.partials,
    )  # fmt: skip
    down_plan = chain(down_plan, up_plan, (first_layouts[0].band if has_gate else 1, first_layouts[-1].band))
    per_channel_in, per_channel_mid = (t is not None and t.numel() > 1 for t in (threshold_in, threshold_mid))
    up_gemv = PreparedGemv(up_plan, first, [None] * len(first), 1, stream, per_channel_in)
    producer_biases = (first_biases[0] if has_gate else None, first_biases[-1])
    down_gemv = PreparedGemv(down_plan, [down], [down_bias], 1, stream, per_channel_mid, producer_biases)
    return MlpCall(up_gemv, down_gemv, output((*x.shape[:-1], down_layout.n), x.dtype))
