"""A model and its tokenizer from a path: a GGUF file, a folder that zigpass wrote, or any Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from zigpass.config import ZigzagConfig
from zigpass.gguf_tokenizer import load_gguf_tokenizer
from zigpass.linear import find_linears
from zigpass.load_gguf import load_gguf
from zigpass.runtime import ZigpassError
from zigpass.tools.hub_cache import hub_folder


def load_model(path: Path, config: ZigzagConfig | None = None) -> tuple[nn.Module, Any]:
    """Load a causal language model with packed linears, and its tokenizer; nothing is downloaded.

    Args:
        path: GGUF file, folder, or id of a model in the local hub cache.
        config: how to quantize a model that comes as floats. A GGUF file is relaid without loss when this is None, else
            dequantized and quantized again.

    Raises:
        ZigpassError: nothing is there, or a float model comes without `config`.
    """
    model, tokenizer = load_unpacked(path, config)
    if not any(True for _ in find_linears(model)):
        _pack(model, config, path)
    return model, tokenizer


def load_unpacked(path: Path, config: ZigzagConfig | None = None) -> tuple[nn.Module, Any]:
    """As `load_model`, but a folder's model stays as it was saved: float, or quantized by another library."""
    if not path.exists():
        path = hub_folder(path.as_posix())
    if path.is_file() and config is None:
        return load_gguf(path), load_gguf_tokenizer(path)
    if path.is_file():
        return load_floats(path)
    if (path / "config.json").is_file():
        return _load_folder(path)
    raise ZigpassError(f"{path}: neither a GGUF file nor a folder with a config.json")


def load_floats(path: Path) -> tuple[nn.Module, Any]:
    """Load a model with float32 weights, a GGUF file's dequantized, and its tokenizer."""
    from transformers import AutoTokenizer

    if path.is_file():
        return _load_floats(path.parent, {"gguf_file": path.name}), load_gguf_tokenizer(path)
    return _load_floats(path, {}), AutoTokenizer.from_pretrained(path, local_files_only=True)


def _pack(model: nn.Module, config: ZigzagConfig | None, path: Path) -> None:
    from zigpass.prepare import prepare, survey
    from zigpass.quantize import quantize_

    if any(finding.recognized for finding in survey(model)):
        prepare(model)
    elif config is None:
        raise ZigpassError(f"{path}: a float model; say how to quantize it (--bits, --group-size, --scale-axis)")
    else:
        quantize_(model, config)


def _load_folder(path: Path) -> tuple[nn.Module, Any]:
    from transformers import AutoTokenizer

    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if (settings.get("quantization_config") or {}).get("quant_method") == "zigpass":
        from zigpass.load_packed import from_pretrained

        model = from_pretrained(path)
    else:
        model = _load_floats(path, {})
    return model, AutoTokenizer.from_pretrained(path, local_files_only=True)


def _load_floats(folder: Path, source: dict[str, str]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **source).eval()
