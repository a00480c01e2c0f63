"""Small GGUF files for tests, written with the `gguf` package."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from .ggml_data import random_blocks

HIDDEN, MIDDLE, HEADS, KV_HEADS, VOCABULARY = 64, 96, 4, 2, 64


def write_llama(path: Path, types: dict[str, GGMLQuantizationType] | None = None, **change: Any) -> dict[str, Any]:
    """Write a one-layer random Llama.

    Args:
        types: tensor name part -> type; matrices are Q4_1 otherwise.
        change: "architecture", "leave_out" (a tensor name), "hidden", "middle" and "head" (sizes), "flags" (metadata).

    Returns:
        The float32 values that each written tensor stands for.
    """
    rng = np.random.default_rng(0)
    architecture = change.get("architecture", "llama")
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    hidden, middle = change.get("hidden", HIDDEN), change.get("middle", MIDDLE)
    head = change.get("head", hidden // HEADS)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(middle)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture == "gemma3":
        writer.add_sliding_window(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    for key, value in change.get("flags", {}).items():
        writer.add_bool(key, value)
    values = {}
    for name, shape in _shapes(architecture, hidden, middle, head).items():
        if name == change.get("leave_out"):
            continue
        # As large as trained weights: larger ones amplify rounding errors from layer to layer.
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        value = (rng.standard_normal(shape) * scale).astype(np.float32)
        wanted = next((kind for part, kind in (types or {}).items() if part in name), GGMLQuantizationType.Q4_1)
        kind = wanted if len(shape) == 2 else GGMLQuantizationType.F32
        data = random_blocks(kind.name, *shape) if kind.name.endswith("_K") else quantize(value, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        values[name] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _shapes(architecture: str, hidden: int, middle: int, head: int) -> dict[str, tuple[int, ...]]:
    kv = head * KV_HEADS
    shapes = _llama_shapes(hidden, middle, head * HEADS, kv)
    if architecture == "qwen2":
        shapes |= {f"blk.0.attn_{part}.bias": (size,) for part, size in (("q", head * HEADS), ("k", kv), ("v", kv))}
    if architecture in ("qwen3", "gemma3"):
        shapes |= {"blk.0.attn_q_norm.weight": (head,), "blk.0.attn_k_norm.weight": (head,)}
    if architecture == "gemma3":
        shapes |= {"blk.0.post_attention_norm.weight": (hidden,), "blk.0.post_ffw_norm.weight": (hidden,)}
    return shapes


def _llama_shapes(hidden: int, middle: int, q: int, kv: int) -> dict[str, tuple[int, ...]]:
    return {
        "token_embd.weight": (VOCABULARY, hidden),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.attn_q.weight": (q, hidden),
        "blk.0.attn_k.weight": (kv, hidden),
        "blk.0.attn_v.weight": (kv, hidden),
        "blk.0.attn_output.weight": (hidden, q),
        "blk.0.ffn_norm.weight": (hidden,),
        "blk.0.ffn_gate.weight": (middle, hidden),
        "blk.0.ffn_up.weight": (middle, hidden),
        "blk.0.ffn_down.weight": (hidden, middle),
        "output_norm.weight": (hidden,),
        "output.weight": (VOCABULARY, hidden),
    }
