"""One-row op calls worked out once: what is left of a call are its key, its outputs and its launches.

A key holds everything that a call was checked for and every address that it launches with: of each weight and bias the
address, number of entries, dtype, contiguity and device, of x the shape, dtype and device, and the stream. It is made
anew for every call from the tensors of that call, so a weight that was moved, replaced or freed has another key and is
checked again; nothing here keeps a tensor alive.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .checks import ALIGNMENT
from .gemv import PreparedGemv
from .launch import current_stream

MOST_CALLS = 2048
"""Calls that a thread keeps, about 5 KB each; a model has three a layer."""
WORKSPACE_ALIGNMENT = 64
"""Floats between the starts of two workspaces in one allocation, a multiple of 256 bytes as torch's allocator gives."""

# What Inductor's own code allocates with, on the current device: 0.5 us where `Tensor.new_empty` takes 1.3 (on a CPU).
# A workspace that stays would cost nothing, but torch frees what is left in a graph's pool when it warms graphs up.
empty_strided = torch._C._dynamo.guards._empty_strided_cuda  # type: ignore[attr-defined]  # not in the stubs

Call = TypeVar("Call")
Key = tuple[Hashable, ...]


class Calls(threading.local, Generic[Call]):
    """The calls that this thread has prepared, by key; the oldest goes when there are too many.

    A thread has its own, because a call fills in the arguments of a launch before it launches.
    """

    def __init__(self) -> None:
        self.known: dict[Key, Call] = {}

    def keep(self, key: Key, call: Call) -> None:
        while len(self.known) >= MOST_CALLS:
            del self.known[next(iter(self.known))]
        self.known[key] = call


def operands_key(tensors: Iterable[Tensor | None]) -> Key:
    """What a launch depends on of weights and biases."""
    return tuple(
        [t if t is None else (t.data_ptr(), t.numel(), t.dtype, t.is_contiguous(), t.get_device()) for t in tensors]
    )


def threshold_key(threshold: Tensor | None) -> Key | None:
    """As `operands_key`, without the address, which each call passes on."""
    if threshold is None:
        return None
    return threshold.numel(), threshold.dtype, threshold.is_contiguous(), threshold.get_device()


def x_key(x: Tensor) -> Key:
    """What a launch depends on of x, with the stream and the current device."""
    index = x.get_device()
    if index < 0:  # on the CPU, beside weights on a GPU: the checks say so
        return (index,)
    aligned = x.data_ptr() % ALIGNMENT
    return x.shape, x.dtype, x.is_contiguous(), aligned, index, current_device(), current_stream(index)


def current_device() -> int:
    """Index of torch's current device."""
    index: int = torch._C._cuda_getDevice()
    return index


Output = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, stride and dtype of a tensor that a call returns."""


def output(shape: Sequence[int], dtype: torch.dtype) -> Output:
    """A contiguous one."""
    return tuple(shape), torch.empty(tuple(shape), device="meta").stride(), dtype


class LinearsCall:
    """`linear` or `qkv` of one row: launches over x, each with its outputs."""

    def __init__(self, launches: Sequence[tuple[PreparedGemv, Sequence[Output]]]) -> None:
        self._workspace, offsets = _workspace([gemv for gemv, _ in launches])
        self._launches = [
            (gemv.run, outputs, offset) for (gemv, outputs), offset in zip(launches, offsets, strict=True)
        ]

    def run_one(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        """As `run`, of a single weight: 0.4 us less."""
        ((launch, (output,), _),) = self._launches
        out: Tensor = empty_strided(*output)
        workspace = empty_strided(*self._workspace)
        limit = 0 if threshold is None else threshold.data_ptr()
        launch(x.data_ptr(), limit, (out.data_ptr(),), workspace.data_ptr())
        return out

    def run(self, x: Tensor, threshold: Tensor | None) -> list[Tensor]:
        """Launch for this x and threshold, which have the key that the call was prepared for."""
        workspace = empty_strided(*self._workspace)
        x_address, partials = x.data_ptr(), workspace.data_ptr()
        limit = 0 if threshold is None else threshold.data_ptr()
        result: list[Tensor] = []
        for launch, outputs, offset in self._launches:
            outs = [empty_strided(*output) for output in outputs]
            launch(x_address, limit, [out.data_ptr() for out in outs], partials + offset)
            result += outs
        return result


class MlpCall:
    """`gated_mlp` of one row: gate and up leave partial sums, down reads them."""

    def __init__(self, up: PreparedGemv, down: PreparedGemv, output: Output) -> None:
        self._workspace, (_, self._offset) = _workspace([up, down])
        self._up, self._down, self._output = up.run, down.run, output

    def run(self, x: Tensor, threshold_in: Tensor | None, threshold_mid: Tensor | None) -> Tensor:
        """As `LinearsCall.run`."""
        out: Tensor = empty_strided(*self._output)
        workspace = empty_strided(*self._workspace)
        middle = workspace.data_ptr()
        limit_in = 0 if threshold_in is None else threshold_in.data_ptr()
        limit_mid = 0 if threshold_mid is None else threshold_mid.data_ptr()
        self._up(x.data_ptr(), limit_in, (), middle)
        self._down(0, limit_mid, (out.data_ptr(),), middle + self._offset, middle)
        return out


def _workspace(gemvs: Sequence[PreparedGemv]) -> tuple[Output, list[int]]:
    """The partial sums of several launches in one allocation, and where each begins, in bytes."""
    offsets, floats = [], 0
    for gemv in gemvs:
        offsets.append(4 * floats)
        floats += -(-gemv.plan.partial_floats // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
    return output((floats,), torch.float32), offsets


linears_calls: Calls[LinearsCall] = Calls()
mlp_calls: Calls[MlpCall] = Calls()


def forget() -> None:
    """Drop this thread's prepared calls."""
    for calls in (linears_calls, mlp_calls):
        known: dict[Key, Any] = calls.known
        known.clear()
