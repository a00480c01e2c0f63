"""How the tensors of a GGUF architecture differ from those of the Hugging Face model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What to undo for one architecture; by default nothing.

    Attributes:
        row_order: (tensor name, model config) -> order of the rows, or None where they are in it.
        norm_offset: what the file adds to the weights of norms.
    """

    row_order: Callable[[str, Any], Tensor | None] = lambda tensor_name, config: None
    norm_offset: float = 0.0

    def restore(self, tensor_name: str, value: Tensor, config: Any) -> Tensor:
        """A tensor that is not packed, as the Hugging Face model has it."""
        order = self.row_order(tensor_name, config)
        if order is not None:
            value = value[order]
        return value - self.norm_offset if self.norm_offset and "norm" in tensor_name else value


def _rotary_halves(tensor_name: str, config: Any) -> Tensor | None:
    """GGUF interleaves the two rotary halves of each q and k head; Hugging Face keeps them one after the other."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = tensor_name.split(".")[-2]
    if part not in heads:
        return None
    half = config.head_dim // 2
    return torch.arange(heads[part] * config.head_dim).view(heads[part], half, 2).transpose(1, 2).reshape(-1)


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "llama": Architecture(row_order=_rotary_halves),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "gemma3": Architecture(norm_offset=1.0),
}
"""By the file's `general.architecture`; each is tested against transformers' own loading of a small file."""
