"""A plain greedy decode loop with a static cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    Attributes:
        tokens: int64 [T], the new tokens, without the end-of-text token.
        prefill_seconds: from the prompt to the first new token.
        decode_seconds: for all further tokens.
        decode_steps: one-token steps taken in that time.
    """

    tokens: Tensor
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; NaN when there was no decode step."""
        return self.decode_steps / self.decode_seconds if self.decode_steps else float("nan")


def generate(
    model: nn.Module,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    decode: Callable[..., Any] | None = None,
    end_tokens: Collection[int] = (),
    cache_length: int | None = None,
) -> Generation:
    """Decode greedily.

    Args:
        model: a Hugging Face causal language model; it reads the prompt.
        prompt: int64 [1, T].
        max_new_tokens: upper bound of new tokens.
        decode: what runs the one-token steps, usually the compiled model; None takes `model`.
        end_tokens: tokens that end the answer.
        cache_length: tokens the key-value cache has room for; by default just enough. A compiled model is compiled
            again for another length.
    """
    from transformers import StaticCache

    decode = model if decode is None else decode
    cache = StaticCache(config=model.config, max_cache_len=cache_length or prompt.shape[1] + max_new_tokens)
    with torch.inference_mode():
        start = time.perf_counter()
        logits = model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(-1)
        tokens: list[int] = []
        prefill_seconds = time.perf_counter() - start
        steps = 0
        while int(token) not in end_tokens:
            tokens.append(int(token))
            if len(tokens) == max_new_tokens:
                break
            token = decode(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            steps += 1
        decode_seconds = time.perf_counter() - start - prefill_seconds
    return Generation(torch.tensor(tokens), prefill_seconds, decode_seconds, steps)
