"""The three ops on CUDA: `reference` says what they compute.

One row: predict and sparse GEMV in one kernel. Up to `DENSE_ROWS` rows: dense GEMV over several rows. More: plain
numbers and a GEMM. The choice looks at shapes only, never at data, so nothing waits for the GPU and every path can be
recorded in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ..errors import ZigpassError
from ..layout import Layout
from ..ops import check_linear, check_mlp
from ..quantized import FLOAT_DTYPES
from ..reference import ACTIVATIONS, mask_inactive, split_weights
from .arguments import MAX_WEIGHTS
from .device import ensure_context, get_device
from .formats import ACTIVATION_CODES, FORMATS, NONE
from .gemv import launch_gemv
from .plan import chain, get_plan, weight_kind
from .prefill import dequantized_matmul
from .specialization import WeightKind, max_rows

P = ParamSpec("P")
R = TypeVar("R")

DENSE_ROWS = 8
"""Rows that still go through the GEMV; a GEMM reads the weight once more as plain numbers, four times larger."""
ALIGNMENT = 16
"""Bytes: every lane reads 16 at a time."""


def linear(x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, threshold: Tensor | None, layout: str) -> Tensor:
    """As `reference.linear`."""
    parsed = check_linear(x, weight, threshold, layout)
    check_operands(x, [weight], [bias], [threshold], [parsed])
    return on_device(x, _linears, x, [weight], [bias], threshold, [parsed], x.dtype)[0]


def qkv(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    layouts: Sequence[str],
) -> list[Tensor]:
    """As `reference.qkv`; weights of one kind share a launch."""
    parts = split_weights(weights, layouts)
    parsed = [check_linear(x, part, threshold, spec) for part, spec in zip(parts, layouts, strict=True)]
    check_operands(x, parts, biases, [threshold], parsed)
    return on_device(x, _linears, x, parts, biases, threshold, parsed, x.dtype)


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
    """As `reference.gated_mlp`. One row: two launches, the second forms the middle while it selects from it."""
    layouts = (gate_layout, up_layout, down_layout)
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
    kinds = {weight_kind(layout, tensors) for layout, tensors in zip(first_layouts, first, strict=True)}
    down_kind = weight_kind(down_parsed, down)
    kind = kinds.pop() if len(kinds) == 1 else None
    if x.numel() == x.shape[-1] and kind is not None and down_kind is not None:
        return on_device(
            x, _fused_mlp, x, first, first_biases, first_layouts, kind, threshold_in,
            down, down_bias, down_parsed, down_kind, threshold_mid, activation,
        )  # fmt: skip
    # Few rows keep the middle in float32; a GEMM takes it in x's dtype, as a plain model does.
    middle_dtype = torch.float32 if _num_rows(x) <= DENSE_ROWS else x.dtype
    parts = on_device(x, _linears, x, first, first_biases, threshold_in, first_layouts, middle_dtype)
    middle = ACTIVATIONS[activation](parts[0])
    if gate_parsed is not None:
        middle = middle * parts[1]
    return on_device(x, _linears, middle, [down], [down_bias], threshold_mid, [down_parsed], x.dtype)[0]


def check_operands(
    x: Tensor,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    thresholds: Sequence[Tensor | None],
    layouts: Sequence[Layout],
) -> None:
    """Raise `ZigpassError` for operands that a kernel would read wrongly: device, dtype, alignment, shape."""
    index = x.get_device()
    if (
        all(_weight_fits(tensors, layout, index) for tensors, layout in zip(weights, layouts, strict=True))
        and all(
            bias is None
            or (bias.get_device() == index and tuple(bias.shape) == (layout.n,) and bias.dtype in FLOAT_DTYPES)
            for bias, layout in zip(biases, layouts, strict=True)
        )
        and all(t is None or (t.get_device() == index and t.dtype == torch.float32) for t in thresholds)
    ):
        return
    raise_misfit(x.device, weights, biases, thresholds, layouts)


def _weight_fits(tensors: Sequence[Tensor], layout: Layout, index: int) -> bool:
    """The common case in a microsecond; `raise_misfit` looks closely (five times as long) and finds the words."""
    codes, scale = tensors[0], tensors[1]
    if codes.dtype != torch.int32 or codes.get_device() != index or scale.get_device() != index:
        return False
    addresses = codes.data_ptr() | scale.data_ptr()
    contiguous = codes.is_contiguous() and scale.is_contiguous()
    if layout.scale_axis == "out":
        return contiguous and scale.dtype == torch.int32 and not addresses % ALIGNMENT
    zero = tensors[2]
    if layout.permuted and (tensors[3].get_device() != index or not tensors[3].is_contiguous()):
        return False
    return (
        contiguous
        and zero.is_contiguous()
        and not (addresses | zero.data_ptr()) % ALIGNMENT
        and zero.get_device() == index
        and zero.numel() == scale.numel()
        and scale.dtype in FLOAT_DTYPES
        and (zero.dtype == torch.uint8 if layout.zero_kind == "sub_int" else zero.dtype in FLOAT_DTYPES)
    )


def raise_misfit(
    device: torch.device,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    thresholds: Sequence[Tensor | None],
    layouts: Sequence[Layout],
) -> None:
    """Raise for the first operand that does not fit; do nothing when all do."""
    for tensors, layout in zip(weights, layouts, strict=True):
        for name, tensor in zip(("codes", "scale", "zero", "perm"), tensors, strict=False):
            if tensor.device != device:
                raise ZigpassError(f"{name} of {layout.spec} is on {tensor.device}, x on {device}")
            if not tensor.is_contiguous() or tensor.data_ptr() % ALIGNMENT:
                raise ZigpassError(f"{name} of {layout.spec} must be contiguous and aligned to {ALIGNMENT} bytes")
        if tensors[0].dtype != torch.int32:
            raise ZigpassError(f"codes of {layout.spec} are {tensors[0].dtype}, expected torch.int32")
        if layout.scale_axis == "out":
            if tensors[1].dtype != torch.int32:
                raise ZigpassError(f"scale of {layout.spec} is {tensors[1].dtype}, expected torch.int32")
        else:
            zero_is_integer = tensors[2].dtype == torch.uint8
            if FORMATS.get(tensors[1].dtype, NONE) > 2 or tensors[2].dtype not in FORMATS:
                raise ZigpassError(f"{layout.spec} has scale {tensors[1].dtype} and zero {tensors[2].dtype}")
            if zero_is_integer != (layout.zero_kind == "sub_int"):
                raise ZigpassError(f"zero of {layout.spec} is {tensors[2].dtype}")
            if tensors[2].shape != tensors[1].shape:
                raise ZigpassError(f"scale and zero of {layout.spec} have different sizes")
    for bias, layout in zip(biases, layouts, strict=True):
        if bias is not None and (
            bias.device != device or tuple(bias.shape) != (layout.n,) or FORMATS.get(bias.dtype, NONE) > 2
        ):
            raise ZigpassError(
                f"bias of {layout.spec} is {bias.dtype} {tuple(bias.shape)} on {bias.device}, expected ({layout.n},)"
                f" floats on {device}"
            )
    for threshold in thresholds:
        if threshold is not None and (threshold.device != device or threshold.dtype != torch.float32):
            raise ZigpassError(f"threshold is {threshold.dtype} on {threshold.device}, expected float32 on {device}")


def on_device(x: Tensor, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call with x's device as the current one."""
    ensure_context()
    if x.device.index == torch.cuda.current_device():
        return function(*args, **kwargs)
    with torch.cuda.device(x.device):
        return function(*args, **kwargs)


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
    """Several weights over one x [..., K], results in `dtype`."""
    rows = _num_rows(x)
    shapes = [(*x.shape[:-1], layout.n) for layout in layouts]
    if rows == 0:
        return [x.new_empty(shape, dtype=dtype) for shape in shapes]
    flat = x.contiguous().view(rows, x.shape[-1])
    threshold = None if threshold is None or rows > 1 else threshold.contiguous()
    biases = [bias if bias is None else bias.contiguous() for bias in biases]
    kinds = [weight_kind(layout, tensors) for layout, tensors in zip(layouts, weights, strict=True)]
    outs: list[Tensor] = []
    for start, end in _runs(kinds):
        kind = kinds[start]
        part = slice(start, end)
        if kind is None or rows > DENSE_ROWS:
            for tensors, bias, layout in zip(weights[part], biases[part], layouts[part], strict=True):
                masked = flat if threshold is None else mask_inactive(flat.float(), threshold).to(flat.dtype)
                outs.append(dequantized_matmul(masked, layout, tensors, bias).to(dtype))
        else:
            outs += _gemv(flat, kind, weights[part], biases[part], threshold, layouts[part], dtype)
    return [out.view(shape) for out, shape in zip(outs, shapes, strict=True)]


def _runs(kinds: Sequence[WeightKind | None]) -> list[tuple[int, int]]:
    """Cut weights into runs that one launch can take: the same kind, at most `MAX_WEIGHTS`."""
    runs: list[tuple[int, int]] = []
    for index, kind in enumerate(kinds):
        if runs and kinds[runs[-1][0]] == kind and index - runs[-1][0] < MAX_WEIGHTS:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


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


def _fused_mlp(
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
) -> Tensor:
    """One row: gate and up leave partial sums, down adds them up, activates, selects and multiplies."""
    x = x.contiguous()
    threshold_in, threshold_mid, down_bias, *first_biases = (
        operand if operand is None else operand.contiguous()
        for operand in (threshold_in, threshold_mid, down_bias, *first_biases)
    )
    index, has_gate = x.device.index, len(first) == 2
    specs = tuple(layout.spec for layout in first_layouts)
    up_plan = get_plan(index, kind, specs, FORMATS[x.dtype], NONE, threshold_in is not None, 1)
    bands = (first_layouts[0].band if has_gate else 1, first_layouts[-1].band)
    down_plan = get_plan(
        index, down_kind, (down_layout.spec,), NONE, FORMATS[x.dtype], threshold_mid is not None, 1,
        has_gate, ACTIVATION_CODES[activation], up_plan.gemv.tile,
    )  # fmt: skip
    plan = chain(down_plan, up_plan, bands)
    partials = launch_gemv(up_plan, first, [None] * len(first), threshold_in, x.data_ptr(), [0] * len(first), 1)
    out = x.new_empty((*x.shape[:-1], down_layout.n))
    gate_bias = first_biases[0] if has_gate else None
    launch_gemv(
        plan, [down], [down_bias], threshold_mid, 0, [out.data_ptr()], 1, (partials, gate_bias, first_biases[-1])
    )
    return out
