"""Language models of real sizes with random weights, made on the GPU: what `zigpass bench decode` times.

One Hugging Face model class for all variants of a model; only its linear layers differ. Weights never exist in float
except in the bfloat16 variant, so a 70B shape needs no more memory than its 4-bit weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.linear import ZigzagLinear
from zigpass.runtime import PackedWeight, ZigpassError
from zigpass.runtime.layout import Layout
from zigpass.sites import Site, site_kind, site_name

GROUP: Final = 128
STD_OF_CODES: Final = 4.6
"""Standard deviation of codes drawn evenly from 0 to 15."""
GAIN: Final = 0.7
"""Outputs of a linear have this standard deviation for inputs of one: activations neither vanish nor blow up."""

MakeLinear = Callable[[str, int, int], nn.Module]
"""A linear layer for a qualified name, out_features N and in_features K, on torch's default device."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a decoder's speed depends on.

    Attributes:
        model_type: of Hugging Face.
        of_layers: layers of the whole model, where `layers` is fewer.
    """

    model_type: str
    hidden: int
    middle: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    of_layers: int | None = None

    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(
            self.model_type,
            hidden_size=self.hidden,
            intermediate_size=self.middle,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=128,
            vocab_size=self.vocabulary,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            dtype=torch.bfloat16,
        )


SHAPES: Final[dict[str, Shape]] = {
    "llama-2-7b": Shape("llama", 4096, 11008, 32, 32, 32, 32000),
    "llama-3-8b": Shape("llama", 4096, 14336, 32, 32, 8, 128256),
    "llama-2-13b": Shape("llama", 5120, 13824, 40, 40, 40, 32000),
    "qwen3-8b": Shape("qwen3", 4096, 12288, 36, 32, 8, 151936),
    "llama-2-70b": Shape("llama", 8192, 28672, 8, 64, 8, 32000, of_layers=80),
}


class TinygemmLinear(nn.Module):
    """torch's own int4 GEMV (`_weight_int4pack_mm`, groups of 128) with random codes: the dense int4 peer."""

    packed: Tensor
    scales: Tensor

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack(codes, 8))
        scales = torch.zeros(k // GROUP, n, 2, dtype=torch.bfloat16)
        scales[..., 0] = _scale(k)
        scales[..., 1] = _scale(k) / 2  # this format's codes stand for -8 to 7
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.aten._weight_int4pack_mm(flat, self.packed, GROUP, self.scales)
        return out.view(*x.shape[:-1], -1)


def make_bfloat16(name: str, n: int, k: int) -> nn.Module:
    linear = nn.Linear(k, n, bias=False, dtype=torch.bfloat16)
    nn.init.normal_(linear.weight, std=GAIN / math.sqrt(k))
    return linear


def make_tinygemm(name: str, n: int, k: int) -> nn.Module:
    return TinygemmLinear(n, k)


def zigzag_maker(sparse: bool) -> MakeLinear:
    """Packed linears; those that read one activation share its site. The head has none and stays dense.

    Args:
        sparse: without it no linear has a site, and the kernels that know no threshold run.
    """
    sites: dict[str, Site] = {}

    def make(name: str, n: int, k: int) -> nn.Module:
        site = None
        if sparse and name != "lm_head":
            shared = site_name(name)
            site = sites.setdefault(shared, Site(shared, site_kind(name), k))
        return ZigzagLinear(_random_weight(n, k), None, site)

    return make


def build(shape: Shape, make: MakeLinear, device: str = "cuda", attention: str = "sdpa") -> nn.Module:
    """The model on a device, bfloat16, every linear from `make`; `attention` is an implementation of Hugging Face."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = shape.config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    with torch.device(device):
        for name, linear in linears:
            model.set_submodule(name, make(name, linear.out_features, linear.in_features))
        _materialize(model)
    return model.eval()  # type: ignore[no-any-return]


def _materialize(model: Any) -> None:
    """Give the rest of the model memory: random embeddings, norms of ones, positions computed again."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                value.normal_() if isinstance(module, nn.Embedding) else value.fill_(1.0)
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise ZigpassError(f"{type(model).__name__}: not known how to fill {', '.join(left)}")


def _random_weight(n: int, k: int) -> PackedWeight:
    layout = Layout(n, k, 4, "in", GROUP, "sub_int", -(-n // 128) * 128)
    codes = torch.randint(-(2**31), 2**31 - 1, (layout.num_code_words,), dtype=torch.int32)
    scale = torch.full((layout.num_scales,), _scale(k), dtype=torch.float16)
    zero = torch.randint(7, 9, scale.shape, dtype=torch.uint8)
    return PackedWeight(layout, (codes, scale, zero))


def _scale(k: int) -> float:
    return GAIN / (STD_OF_CODES * math.sqrt(k))
