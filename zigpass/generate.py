"""A plain decode loop with a static cache: greedy or sampled, streamed if wanted."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .cache_argument import cache_arguments
from .decode_step import Decode, DecodeStep
from .decoded_tokens import decoded_tokens
from .sampling import Sampling, TokenPicker

STEPS_AHEAD = 1
"""Replays of a CUDA graph that are launched before the token in front of them is read: one hides the host, which takes
0.1 to 0.3 ms to launch a step of a large model."""


class Streamer(Protocol):
    """Receives tokens as they come; `transformers.TextStreamer` is one."""

    def put(self, value: Tensor) -> None:
        """The prompt int64 [1, T] first, then one token int64 [1] at a time."""

    def end(self) -> None:
        """The answer is complete."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    Attributes:
        tokens: int64 [T], the new tokens, without the end-of-text token.
        prefill_seconds: from the prompt to the first new token.
        decode_seconds: for all further tokens.
        decode_steps: one-token steps whose tokens were read in that time.
    """

    tokens: Tensor
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; NaN when there was no decode step."""
        return self.decode_steps / self.decode_seconds if self.decode_steps else float("nan")

    @property
    def summary(self) -> str:
        """ "64 tokens; prefill 0.21 s, decode 65.0 tokens/s"."""
        speed = f"decode {self.tokens_per_second:.1f} tokens/s" if self.decode_steps else "no decode step"
        return f"{len(self.tokens)} tokens; prefill {self.prefill_seconds:.2f} s, {speed}"


def generate(
    model: nn.Module,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    decode: Decode | None = None,
    end_tokens: Collection[int] = (),
    cache_length: int | None = None,
    sampling: Sampling | None = None,
    streamer: Streamer | None = None,
    cuda_graph: bool | None = None,
) -> Generation:
    """Decode one sequence.

    Args:
        model: a Hugging Face causal language model; it reads the prompt.
        prompt: int64 [1, T].
        max_new_tokens: upper bound of new tokens.
        decode: what runs the one-token steps, usually the compiled model; None takes `model`.
        end_tokens: tokens that end the answer.
        cache_length: tokens the key-value cache has room for; by default just enough. A compiled model is compiled
            again for another length.
        sampling: how to choose tokens at random; None takes the most likely one.
        streamer: where tokens go as they come.
        cuda_graph: capture the decode step as one CUDA graph and replay it; by default on a GPU when `decode` is given.
            A token is then read while the next step runs.

    Raises:
        ZigpassError: the prompt is not one non-empty sequence, nothing may be generated, the cache is too short, or
            a CUDA graph is asked for on a CPU.
    """
    from transformers import StaticCache

    needed = prompt.shape[-1] + max_new_tokens
    _check(prompt, max_new_tokens, cache_length, needed, cuda_graph)
    if cuda_graph is None:
        cuda_graph = decode is not None and prompt.is_cuda
    cache = StaticCache(config=model.config, max_cache_len=cache_length or needed)
    step = DecodeStep(decode if decode is not None else model, cache, cuda_graph)
    picker = TokenPicker(sampling, prompt.device)
    if streamer is not None:
        streamer.put(prompt.cpu())
    with torch.inference_mode():
        start = time.perf_counter()
        token = picker.pick(model(prompt, **cache_arguments(model, cache), logits_to_keep=1).logits)
        first = int(token)
        prefill_seconds = time.perf_counter() - start
        following = decoded_tokens(step, picker, token, max_new_tokens - 1, STEPS_AHEAD if cuda_graph else 0)
        tokens: list[int] = []
        decode_steps = -1
        for value in itertools.chain([first], following):
            decode_steps += 1
            if value in end_tokens:
                break
            tokens.append(value)
            if streamer is not None:
                streamer.put(torch.tensor([value]))
        decode_seconds = time.perf_counter() - start - prefill_seconds
    if streamer is not None:
        streamer.end()
    return Generation(torch.tensor(tokens), prefill_seconds, decode_seconds, decode_steps)


def _check(prompt: Tensor, max_new_tokens: int, cache_length: int | None, needed: int, cuda_graph: bool | None) -> None:
    wrong = []
    if prompt.dim() != 2 or prompt.shape[0] != 1 or prompt.shape[1] == 0:
        wrong.append(f"prompt is {tuple(prompt.shape)}, expected one sequence [1, T] of at least one token")
    if max_new_tokens < 1:
        wrong.append(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if cache_length is not None and cache_length < needed:
        wrong.append(f"cache_length {cache_length} is too short: prompt and new tokens need {needed}")
    if cuda_graph and not prompt.is_cuda:
        wrong.append(f"cuda_graph=True needs the model and the prompt on a GPU, the prompt is on {prompt.device}")
    if wrong:
        raise ZigpassError("; ".join(wrong))
