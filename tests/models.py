"""Small models for tests."""

from typing import Any

import torch
from torch import Tensor, nn

from zigpass.config import ZigzagConfig
from zigpass.quantize import quantize_
from zigpass.sites import find_sites

WORDS = [f"w{index}" for index in range(97)]
"""What the tokens of `tiny_llama` spell in the tests of commands."""


class SwiGlu(nn.Module):
    """A SwiGLU MLP with the names that Hugging Face gives its parts."""

    def __init__(self, hidden: int = 64, middle: int = 96, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, middle, bias)
        self.up_proj = nn.Linear(hidden, middle, bias)
        self.down_proj = nn.Linear(middle, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def tiny_llama(*, layers: int = 2, **config: Any) -> Any:
    """A random Llama with grouped-query attention, float32, eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **config,
    }
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def quantized_tiny_llama(threshold: float = 0.0, **config: Any) -> Any:
    """`tiny_llama`, 4-bit in groups of 32, every site at one threshold."""
    model = quantize_(tiny_llama(**config), ZigzagConfig(group_size=32), progress=False)
    for site in find_sites(model).values():
        site.set_threshold(threshold)
    return model


def random_tokens(count: int, vocabulary: int = 97, seed: int = 0) -> Tensor:
    """int64 [count]."""
    return torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))
