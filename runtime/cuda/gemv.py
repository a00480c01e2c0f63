"""Launching a GEMV plan: addresses into the argument struct, workspace, stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Arguments
from .formats import FORMATS
from .launch import current_stream
from .plan import Plan


def launch_gemv(
    plan: Plan,
    weights: Sequence[Sequence[Tensor]],
    biases: Sequence[Tensor | None],
    threshold: Tensor | None,
    x: int,
    outs: Sequence[int],
    rows: int,
    producer: tuple[Tensor, Tensor | None, Tensor | None] | None = None,
) -> Tensor:
    """Launch on the current stream.

    Args:
        weights: packed tensors per weight.
        biases: one entry per weight; not added when the plan leaves partial sums.
        threshold: float32 [1] or [K] where the plan is sparse, else None.
        x: address of [rows, K] in the plan's format; ignored when it reads partial sums.
        outs: address of [rows, n] per weight; ignored when it leaves partial sums.
        rows: at most the plan's.
        producer: partial sums of gate and up, gate's bias and up's bias, where the plan reads them.

    Returns:
        The workspace with the partial sums. It comes from torch's allocator, which knows about streams and graph pools.
    """
    stream = current_stream(plan.device.index)
    partials = weights[0][0].new_empty(plan.partial_floats, dtype=torch.float32)
    arguments = Arguments.from_buffer_copy(plan.template)
    for slot, tensors, bias, out in zip(arguments.weights, weights, biases, outs, strict=False):
        slot.codes, slot.scale = tensors[0].data_ptr(), tensors[1].data_ptr()
        if len(tensors) > 2:
            slot.zero = tensors[2].data_ptr()
        if len(tensors) > 3:
            slot.perm = tensors[3].data_ptr()
        slot.out = out
        if bias is not None:
            slot.bias, slot.bias_format = bias.data_ptr(), FORMATS[bias.dtype]
    arguments.x, arguments.rows, arguments.partials = x, rows, partials.data_ptr()
    if threshold is not None:
        arguments.threshold, arguments.per_channel = threshold.data_ptr(), int(threshold.numel() > 1)
    if producer is not None:
        in_partials, gate_bias, up_bias = producer
        arguments.in_partials = in_partials.data_ptr()
        if gate_bias is not None:
            arguments.gate_bias, arguments.gate_bias_format = gate_bias.data_ptr(), FORMATS[gate_bias.dtype]
        if up_bias is not None:
            arguments.up_bias, arguments.up_bias_format = up_bias.data_ptr(), FORMATS[up_bias.dtype]
    plan.function.launch_arguments((plan.blocks, 1), stream, arguments)
    if plan.combine is not None:
        plan.combine.launch_arguments((plan.combine_blocks, rows), stream, arguments)
    return partials
