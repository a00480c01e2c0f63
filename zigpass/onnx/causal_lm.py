"""A Hugging Face causal language model as a function of tensors: the key-value cache goes in and comes out.

Names and shapes are those of onnxruntime-genai: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.{i}.key`, and `logits`, `present.{i}.key`. Keys and values are
[batch_size, kv_heads, length, head_dim].
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.cache_argument import cache_argument, cache_arguments
from zigpass.runtime import ZigpassError

# Sizes of the traced example; all differ, so that no two dimensions are taken for one.
_BATCH, _LENGTH, _PAST = 2, 3, 5
IDS: Final = ("input_ids", "attention_mask", "position_ids")


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """Keys and values of one layer.

    Attributes:
        key, value: (heads, head_dim) of each.
        dtype: of both.
    """

    key: tuple[int, int]
    value: tuple[int, int]
    dtype: torch.dtype


class CausalLM(nn.Module):
    """logits and the grown cache from token ids and the cache so far."""

    def __init__(self, model: nn.Module, layers: Sequence[CacheShape]) -> None:
        super().__init__()
        self.model = model
        self.layers = list(layers)
        self.ids = tuple(name for name in IDS if name in inspect.signature(model.forward).parameters)

    def forward(self, ids: list[Tensor], past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        cache = _cache(past)
        out = self.model(**dict(zip(self.ids, ids, strict=True)), **cache_arguments(self.model, cache))
        return out.logits, [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]

    @property
    def input_names(self) -> list[str]:
        return [*self.ids, *(f"past_key_values.{i}.{part}" for i in range(len(self.layers)) for part in _PARTS)]

    @property
    def output_names(self) -> list[str]:
        return ["logits", *(f"present.{i}.{part}" for i in range(len(self.layers)) for part in _PARTS)]

    def example_inputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Small inputs to trace with; their values do not matter."""
        device = next(self.model.parameters()).device
        total = _PAST + _LENGTH
        ids = {
            "input_ids": torch.zeros(_BATCH, _LENGTH, dtype=torch.int64, device=device),
            "attention_mask": torch.ones(_BATCH, total, dtype=torch.int64, device=device),
            "position_ids": torch.arange(_PAST, total, device=device).repeat(_BATCH, 1),
        }
        past = []
        for layer in self.layers:
            for heads, head_dim in (layer.key, layer.value):
                past.append(torch.zeros(_BATCH, heads, _PAST, head_dim, dtype=layer.dtype, device=device))
        return [ids[name] for name in self.ids], past

    def dynamic_shapes(self) -> tuple[Any, Any]:
        """Which dimensions vary, for `torch.export.export`."""
        dynamic = torch.export.Dim.DYNAMIC
        return [{0: dynamic, 1: dynamic} for _ in self.ids], [
            {0: dynamic, 2: dynamic} for _ in range(2 * len(self.layers))
        ]

    def dimension_names(self) -> dict[str, list[str]]:
        """Names of the varying dimensions of each input, by the name of the input."""
        sequence = ["batch_size", "sequence_length"]
        names = dict.fromkeys(self.ids, sequence)
        if "attention_mask" in names:
            names["attention_mask"] = ["batch_size", "total_sequence_length"]
        past = ["batch_size", "past_sequence_length"]
        return {**names, **dict.fromkeys(self.input_names[len(self.ids) :], past)}


_PARTS: Final = ("key", "value")


def is_causal_lm(model: nn.Module) -> bool:
    """Whether a model is a causal language model of transformers with a key-value cache."""
    return (
        hasattr(model, "config")
        and callable(getattr(model, "get_output_embeddings", None))
        and "input_ids" in inspect.signature(model.forward).parameters
        and cache_argument(model) is not None
    )


def wrap_causal_lm(model: nn.Module) -> CausalLM:
    """A causal language model as `CausalLM`; it is run once, on two tokens, to see what its cache holds.

    Raises:
        ZigpassError: the model has another cache than one of keys and values in every layer.
    """
    from transformers.cache_utils import DynamicCache

    device = next(model.parameters()).device
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.zeros(1, 2, dtype=torch.int64, device=device), **cache_arguments(model, cache))
    shapes = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or values.dim() != 4:
            raise ZigpassError(
                f"{type(model).__name__}: layer {index} of its cache ({type(layer).__name__}) does not hold keys and"
                " values of four dimensions; export a module of your own around it with example_inputs"
            )
        shapes.append(CacheShape((keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3]), keys.dtype))
    return CausalLM(model, shapes)


def _cache(past: Sequence[Tensor]) -> Any:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
