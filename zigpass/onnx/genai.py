"""What onnxruntime-genai wants beside a model: `genai_config.json` and the tokenizer's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from .causal_lm import CausalLM

CONFIG_NAME: Final = "genai_config.json"
_KNOWN_TYPES: Final = frozenset(
    {"chatglm", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gptoss", "granite", "llama", "mistral", "nemotron"}
    | {"olmo", "phi", "phi3", "phimoe", "qwen2", "qwen3", "smollm3"}
)
"""Model types that onnxruntime-genai runs as a plain decoder; any other decoder runs as "decoder"."""


def genai_config(lm: CausalLM, file_name: str) -> dict[str, Any]:
    """The content of `genai_config.json`."""
    model: Any = lm.model
    config = model.config.get_text_config(decoder=True)
    generation = getattr(model, "generation_config", None)

    def token(name: str) -> Any:
        values = (getattr(each, name, None) for each in (generation, config))
        return next((value for value in values if value is not None), None)

    end = token("eos_token_id")
    first_end = end[0] if isinstance(end, list) else end
    inputs = {name: name for name in lm.ids}
    inputs |= {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    outputs = {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    kv_heads, head_size = lm.layers[0].key
    context_length = int(getattr(config, "max_position_embeddings", None) or 2048)
    return {
        "model": {
            "type": config.model_type if config.model_type in _KNOWN_TYPES else "decoder",
            "vocab_size": config.vocab_size,
            "context_length": context_length,
            "bos_token_id": _first_known(token("bos_token_id"), first_end),
            "eos_token_id": _first_known(end),
            "pad_token_id": _first_known(token("pad_token_id"), first_end),
            "decoder": {
                "filename": file_name,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": kv_heads,
                "num_hidden_layers": len(lm.layers),
                "head_size": head_size,
                "inputs": inputs,
                "outputs": outputs,
            },
        },
        # The cache that goes in and the one that comes out are two tensors here.
        "search": {"max_length": context_length, "past_present_share_buffer": False, "do_sample": False},
    }


def write_genai(lm: CausalLM, tokenizer: Any, folder: Path, file_name: str) -> None:
    """Write `genai_config.json`, and the tokenizer's files if there is one.

    Raises:
        OSError: as the system says.
    """
    text = json.dumps(genai_config(lm, file_name), indent=2) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _first_known(*values: Any) -> Any:
    return next((value for value in values if value is not None), 0)
