"""The tokens of a decode loop as numbers on the host, without the GPU ever waiting for the host to read one.

A step takes its token from the GPU, where the step before left it. Reading that token's value first, to print it and to
see whether the answer ends, would let the GPU wait until the host has launched the next step's graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from .decode_step import DecodeStep
from .sampling import TokenPicker


class TokenValue:
    """The value of a token int64 [1, 1], on its way to the host from the moment this is made."""

    def __init__(self, token: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._token = token
        if token.is_cuda:
            self._token = torch.empty(token.shape, dtype=token.dtype, pin_memory=True)
            self._token.copy_(token, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> int:
        """Wait until it is there; for nothing that was launched after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._token)


def decoded_tokens(step: DecodeStep, picker: TokenPicker, first: Tensor, count: int, ahead: int) -> Iterator[int]:
    """Values of up to `count` tokens that follow the first one.

    Args:
        first: int64 [1, 1], on the device of the model.
        ahead: steps that are launched before a value is read. They are lost when the answer ends there.
    """
    token, launched = first, 0
    waiting: deque[TokenValue] = deque()
    while waiting or launched < count:
        while launched < count and len(waiting) <= ahead:
            token = picker.pick(step(token))
            waiting.append(TokenValue(token))
            launched += 1
        yield waiting.popleft().read()
