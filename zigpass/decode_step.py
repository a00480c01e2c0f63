"""The step from one token to the next one's logits, replayed as one CUDA graph on a GPU.

A step of a large model launches several hundred kernels. Launched one by one they leave the GPU waiting for the host;
captured once and replayed they follow each other without a gap, and neither Python nor Dynamo's guards run again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError

from .cache_argument import cache_arguments

Decode = Callable[..., Any]
"""A causal language model, or what stands for it: `decode(token, past_key_values=cache, use_cache=True).logits`, where
the cache may have the other name of `cache_argument`."""

WARM_UP_STEPS = 2
"""Steps that run as they come before a graph is captured: they compile, load kernels and allocate workspaces."""


@dataclasses.dataclass(frozen=True)
class _Captured:
    """A graph and the tensor it leaves the logits in."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.logits


class DecodeStep:
    """Takes a token int64 [1, 1], moves the cache on by one, and gives the logits [1, 1, vocabulary].

    Args:
        decode: what runs a step.
        cache: the key-value cache, of fixed size and place (`transformers.StaticCache`).
        cuda_graph: capture the step after `WARM_UP_STEPS` real ones and replay it from then on. The logits then lie in
            one tensor, overwritten by the next step.

    Raises:
        ZigpassError: the step cannot be captured.
    """

    def __init__(self, decode: Decode, cache: Any, cuda_graph: bool) -> None:
        self.decode = decode
        self._arguments = cache_arguments(decode, cache)
        self.cuda_graph = cuda_graph
        self.steps = 0
        self._captured: _Captured | None = None
        self._token: Tensor | None = None

    def __call__(self, token: Tensor) -> Tensor:
        self.steps += 1
        if not self.cuda_graph:
            return self._run(token)
        # The steps before the capture read the graph's own tensor too: one that is laid out in another way, such as a
        # piece of a prompt, would have the model compiled again while the graph is captured.
        if self._token is None:
            self._token = torch.empty((1, 1), dtype=token.dtype, device=token.device)
        self._token.copy_(token)
        if self.steps <= WARM_UP_STEPS:
            return self._run_beside(self._token)
        if self._captured is None:
            self._captured = self._capture(self._token)
        return self._captured.replay()

    def _run(self, token: Tensor) -> Tensor:
        logits: Tensor = self.decode(token, **self._arguments).logits
        return logits

    def _run_beside(self, token: Tensor) -> Tensor:
        """On a side stream, as the steps before a capture should be."""
        stream = torch.cuda.Stream(token.device)
        stream.wait_stream(torch.cuda.current_stream(token.device))
        with torch.cuda.stream(stream):
            logits = self._run(token)
        torch.cuda.current_stream(token.device).wait_stream(stream)
        return logits

    def _capture(self, token: Tensor) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(token.device), torch.cuda.graph(graph):
                logits = self._run(token)
        except RuntimeError as error:
            _end_failed_capture()
            raise ZigpassError(
                f"the decode step cannot be captured as a CUDA graph ({error}); a model compiled with"
                ' mode="reduce-overhead" captures graphs itself: pass cuda_graph=False, or compile it without the mode'
            ) from error
        return _Captured(graph, logits)


def _end_failed_capture() -> None:
    """A capture that failed leaves torch's random generator waiting for its end; another one that ends frees it."""
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        pass
