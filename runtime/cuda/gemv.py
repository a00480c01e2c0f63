"""Launching a GEMV plan: addresses into the argument struct, workspace, stream."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Arguments, Weight, word_of, words_of
from .formats import FORMATS
from .launch import current_stream
from .plan import Plan

_X, _THRESHOLD, _PARTIALS, _IN_PARTIALS = (
    word_of(Arguments, field) for field in ("x", "threshold", "partials", "in_partials")
)
_FIRST_OUT, _WEIGHT_WORDS = word_of(Arguments, "weights") + word_of(Weight, "out"), ctypes.sizeof(Weight) // 8


class PreparedGemv:
    """A plan on a stream with the addresses of its weights in place, so that a call fills in only what changed.

    It holds addresses and no tensors: whoever runs it vouches that the weights are still there. Not for two threads at
    a time, because a call writes into the one argument struct.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Sequence[Sequence[Tensor]],
        biases: Sequence[Tensor | None],
        rows: int,
        stream: int,
        per_channel: bool = False,
        producer_biases: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        """
        Args:
            weights: packed tensors per weight.
            biases: one entry per weight; not added when the plan leaves partial sums.
            rows: rows of x, at most the plan's.
            stream: handle of the stream to launch on.
            per_channel: the threshold has K entries, not 1.
            producer_biases: gate's and up's, where the plan reads partial sums.
        """
        self.plan = plan
        arguments = Arguments.from_buffer_copy(plan.template)
        for slot, tensors, bias in zip(arguments.weights, weights, biases, strict=False):
            slot.codes, slot.scale = tensors[0].data_ptr(), tensors[1].data_ptr()
            if len(tensors) > 2:
                slot.zero = tensors[2].data_ptr()
            if len(tensors) > 3:
                slot.perm = tensors[3].data_ptr()
            if bias is not None:
                slot.bias, slot.bias_format = bias.data_ptr(), FORMATS[bias.dtype]
        gate_bias, up_bias = producer_biases
        if gate_bias is not None:
            arguments.gate_bias, arguments.gate_bias_format = gate_bias.data_ptr(), FORMATS[gate_bias.dtype]
        if up_bias is not None:
            arguments.up_bias, arguments.up_bias_format = up_bias.data_ptr(), FORMATS[up_bias.dtype]
        arguments.rows, arguments.per_channel = rows, int(per_channel)
        self._words = words_of(arguments)
        self._launches = [plan.function.bind((plan.blocks, 1), stream, arguments)]
        if plan.combine is not None:
            self._launches.append(plan.combine.bind((plan.combine_blocks, rows), stream, arguments))

    def run(self, x: int, threshold: int, outs: Sequence[int], partials: int, in_partials: int = 0) -> None:
        """Launch with these addresses.

        Args:
            x: [rows, K] in the plan's format; ignored when it reads partial sums.
            threshold: float32 [1] or [K]; ignored when the plan is dense.
            outs: [rows, n] per weight; empty when the plan leaves partial sums.
            partials: the workspace, `plan.partial_floats` float32.
            in_partials: the producer's workspace, where the plan reads one.
        """
        words = self._words
        words[_X], words[_THRESHOLD], words[_PARTIALS], words[_IN_PARTIALS] = x, threshold, partials, in_partials
        index = _FIRST_OUT
        for out in outs:
            words[index] = out
            index += _WEIGHT_WORDS
        for launch in self._launches:
            launch()


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
    """Launch on the current stream, once.

    Args:
        weights, biases, x, outs, rows: as in `PreparedGemv`.
        threshold: float32 [1] or [K] where the plan is sparse, else None.
        producer: partial sums of gate and up, gate's bias and up's bias, where the plan reads them.

    Returns:
        The workspace with the partial sums. It comes from torch's allocator, which knows about streams and graph pools.
    """
    partials = weights[0][0].new_empty(plan.partial_floats, dtype=torch.float32)
    in_partials, *producer_biases = producer or (None, None, None)
    prepared = PreparedGemv(
        plan, weights, biases, rows, current_stream(plan.device.index),
        threshold is not None and threshold.numel() > 1, (producer_biases[0], producer_biases[1]),
    )  # fmt: skip
    prepared.run(
        x,
        0 if threshold is None else threshold.data_ptr(),
        outs,
        partials.data_ptr(),
        0 if in_partials is None else in_partials.data_ptr(),
    )
    return partials
