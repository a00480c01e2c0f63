"""How the next token is picked from logits: greedily, or at random among the likely ones."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from zigpass.runtime import ZigpassError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Random choice of tokens; the names are Hugging Face's.

    Attributes:
        temperature: what the logits are divided by; above 0.
        top_k: choose among this many most likely tokens; 0 is all of them.
        top_p: choose among the fewest tokens whose probabilities reach this sum, in (0, 1].
        seed: of the random generator; the same seed gives the same tokens on one device.

    Raises:
        ZigpassError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = []
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            wrong.append(f"temperature must be above 0, got {self.temperature} (leave sampling out to decode greedily)")
        if self.top_k < 0:
            wrong.append(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            wrong.append(f"top_p must be in (0, 1], got {self.top_p}")
        if wrong:
            raise ZigpassError("; ".join(wrong))


class TokenPicker:
    """Picks the next token from logits.

    Args:
        sampling: None picks the most likely token.
        device: of the logits.
    """

    def __init__(self, sampling: Sampling | None, device: torch.device) -> None:
        self.sampling = sampling
        self.generator = None
        if sampling is not None:
            self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def pick(self, logits: Tensor) -> Tensor:
        """Token int64 [1, 1] for logits [1, T, vocabulary]; only the last position counts."""
        last = logits[:, -1]
        if self.sampling is None:
            return last.argmax(-1, keepdim=True)
        return torch.multinomial(probabilities(last, self.sampling), 1, generator=self.generator)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What `Sampling` chooses from, [rows, vocabulary] float32; tokens that are left out have probability 0."""
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -math.inf)
    chances = scaled.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(descending=True, stable=True)
        # A token stays when those before it do not reach the sum yet: the first always does.
        kept = ordered.cumsum(-1) - ordered < sampling.top_p
        chances = torch.zeros_like(chances).scatter(-1, order, ordered * kept)
        chances /= chances.sum(-1, keepdim=True)
    return chances
