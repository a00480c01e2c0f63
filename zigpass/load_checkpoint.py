"""`load_checkpoint`: a GPTQ, AWQ or compressed-tensors checkpoint folder, relaid without the library that wrote it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError, pack
from zigpass.runtime.errors import raise_collected

from .formats.checkpoint_weights import PARTS, Reader, check_finite, find_reader
from .linear import ZigzagLinear
from .meta_model import fill_computed_buffers, find_meta_tensors
from .progress import track
from .replace import SiteRegistry, replace_module
from .tensor_files import TensorFiles


def load_checkpoint(
    folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, progress: bool = True
) -> nn.Module:
    """Load a causal language model from a quantized safetensors checkpoint, its linears packed in the zigzag layout.

    Codes, scales and zeros are those of the files; their meaning is the formats' definition, in float32. Loading with
    transformers and calling `prepare` gives the same weights, needs the format's library, and compares with it.

    Args:
        folder: `config.json` with a `quantization_config`, and safetensors files.
        dtype: dtype of everything that is not packed; default what the files have.
        progress: show a progress bar.

    Returns:
        A Hugging Face model in eval mode on the CPU; thresholds are 0 (dense) until `calibrate`.

    Raises:
        ZigpassError: a missing, damaged or unsupported file; tensors that do not fit the model are all named.
    """
    folder = Path(folder)
    settings, model = _empty_model(folder)
    try:
        marker, read = find_reader(settings)
    except ZigpassError as error:
        raise ZigpassError(f"{folder}: {error}") from error
    with TensorFiles(folder) as files:
        names = sorted(files.names)
        linears = [name.rpartition(".")[0] for name in names if name.rpartition(".")[2] == marker]
        plain = [name for name in names if name.rpartition(".")[0] not in set(linears) or _leaf(name) not in PARTS]
        _check(folder, model, linears, plain)
        fill_computed_buffers(model)
        sites = SiteRegistry(model)
        head = model.get_output_embeddings()
        for name in track(linears, "loading", show=progress):
            site = None if model.get_submodule(name) is head else sites
            _pack_linear(folder, model, name, files, read, site, dtype)
        for name in plain:
            _set_plain(model, name, files.get_tensor(name), dtype)
    model.tie_weights()
    left = find_meta_tensors(model)
    raise_collected(left, f"{folder}: the files lack tensors that {type(model).__name__} needs:")
    return model.eval()  # type: ignore[no-any-return]


def _pack_linear(
    folder: Path,
    model: nn.Module,
    name: str,
    files: TensorFiles,
    read: Reader,
    sites: SiteRegistry | None,
    dtype: torch.dtype | None,
) -> None:
    names = {part: f"{name}.{part}" for part in (*PARTS, "bias")}
    tensors = {part: files.get_tensor(full) for part, full in names.items() if full in files.names}
    bias = tensors.pop("bias", None)
    module: Any = model.get_submodule(name)
    try:
        weight = read(tensors)
        check_finite(weight)
    except KeyError as error:
        raise ZigpassError(f"{folder}: {name}: the files have no tensor {error}") from error
    except ZigpassError as error:
        raise ZigpassError(f"{folder}: {name}: {error}") from error
    if tuple(weight.codes.shape) != (module.out_features, module.in_features):
        raise ZigpassError(
            f"{folder}: {name}: the files have {tuple(weight.codes.shape)}, the model"
            f" {(module.out_features, module.in_features)}"
        )
    site = None if sites is None else sites.site_for(name, module.in_features)
    replace_module(
        model, name, ZigzagLinear(pack(weight), None if bias is None else bias.to(dtype or bias.dtype), site)
    )


def _set_plain(model: nn.Module, name: str, value: Tensor, dtype: torch.dtype | None) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, ZigzagLinear):
        return  # its bias, which went with it
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    is_parameter = isinstance(getattr(module, leaf), nn.Parameter)
    setattr(module, leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)


def _check(folder: Path, model: nn.Module, linears: list[str], plain: list[str]) -> None:
    modules = dict(model.named_modules())
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    failures = [
        f"{name}: {type(model).__name__} has no such linear"
        for name in linears
        if type(modules.get(name)) is not nn.Linear
    ]
    failures += [
        f"{name}: {type(model).__name__} has no such tensor"
        for name in plain
        # GPTQ files have a bias of zeros also where the model has none.
        if name not in own and not (_leaf(name) == "bias" and name.rpartition(".")[0] in linears)
    ]
    raise_collected(failures, f"{folder}: the files do not fit the model that config.json describes:")


def _empty_model(folder: Path) -> tuple[dict[str, Any], Any]:
    """`quantization_config` and the model that the folder describes, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / "config.json"
    if not path.is_file():
        raise ZigpassError(f"{path}: no such file")
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ZigpassError(f"{path}: not the configuration of a transformers model ({error})") from error
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        raise ZigpassError(
            f"{path}: no quantization_config; load the model with transformers and call zigpass.quantize_"
        )
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.config._name_or_path = str(folder)
    return dict(settings if isinstance(settings, dict) else settings.to_dict()), model


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
