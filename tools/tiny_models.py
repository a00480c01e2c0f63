"""Tiny random models of many architectures: real transformers classes, a few thousand weights each."""

from __future__ import annotations

from typing import Any

import torch

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma2": {"query_pre_attn_scalar": 16},
    "Gemma3": {"query_pre_attn_scalar": 16},
    "Phi3": {},
    "Glm": {},
    "Olmo2": {},
    "SmolLM3": {},
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96, "n_positions": 64},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "Falcon": {"ffn_hidden_size": 96},
    "Starcoder2": {},
    "Granite": {},
    "Mixtral": {**EXPERTS, "num_local_experts": 4},
    "Qwen3Moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32},
}
"""transformers' name of the family -> settings of its configuration besides `COMMON`."""

CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3": "Gemma3ForCausalLM"}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
NAMES_OF_THEIR_OWN = ("GPT2",)
"""Families whose configuration names its sizes otherwise and takes none of those in `COMMON` that name sizes."""


def tiny_model(family: str, **settings: Any) -> Any:
    """A random float32 model in eval mode; norms and biases are random too, so that forgetting one shows."""
    import transformers

    config_class = getattr(transformers, CONFIGS.get(family, f"{family}Config"))
    model_class = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))
    common = COMMON if family not in NAMES_OF_THEIR_OWN else {"vocab_size": 64}
    torch.manual_seed(0)
    model = model_class(config_class(**{**common, **FAMILIES[family], **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.1)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def decode_inputs(family: str, start: int, stop: int) -> dict[str, Any]:
    """What a model is called with for the tokens from `start` to `stop` of a fixed text.

    OPT reads positions off its mask, which breaks the graph unless they are given.
    """
    tokens = torch.randint(3, COMMON["vocab_size"], (1, 16), generator=torch.Generator().manual_seed(3))
    call: dict[str, Any] = {"input_ids": tokens[:, start:stop]}
    if family == "OPT":
        call["attention_mask"] = torch.ones(1, stop, dtype=torch.int64)
        call["position_ids"] = torch.arange(start, stop)[None]
    return call
