"""`save_pretrained`: a packed model as a folder of data, nothing executable."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from zigpass.runtime import ZigpassError
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.layout import LAYOUT_VERSION

from .linear import ZigzagLinear
from .manifest import (
    CONFIG_NAME,
    FILE_VERSION,
    METADATA_KEY,
    PACKED_NAMES,
    QUANT_METHOD,
    SITE_PREFIX,
    Manifest,
    SavedLinear,
    SavedSite,
)
from .sites import Site
from .tensor_files import INDEX_NAME, SINGLE_NAME, remove_others

MAX_SHARD_SIZE: Final = "50GB"
"""As in transformers."""


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], *, max_shard_size: int | str = MAX_SHARD_SIZE
) -> None:
    """Write a packed Hugging Face model to a folder; `from_pretrained` reads it back bit for bit, thresholds included.

    The folder gets `model.safetensors`, or shards with an index as Hugging Face writes them, and `config.json` with
    `quantization_config`; a threshold that several linears share is stored once, and so is a tied embedding. A file is
    complete or not there under its name. Weight files of a model that was saved there before are removed.

    Args:
        model: a transformers model with packed linears.
        folder: created when it does not exist.
        max_shard_size: bytes, or text such as "5GB". A tensor that is larger has a shard of its own.

    Raises:
        ZigpassError: the model is not one of transformers, has no packed linears, has tensors without data or linears
            of another quantization, the size makes no sense, or the folder cannot be written.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
    config = _config_of(model)
    manifest, tensors = collect(model)
    folder = Path(folder)
    shards = _split(tensors, max_shard_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(folder, shards, tensors, manifest)
        _write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True))
        generation_config = getattr(model, "generation_config", None)
        if generation_config is not None:
            generation_config.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise ZigpassError(f"{folder}: cannot write the model ({error})") from error


def _split(tensors: dict[str, Tensor], max_shard_size: int | str) -> dict[str, list[str]]:
    """File name -> names of the tensors in it."""
    from huggingface_hub import split_torch_state_dict_into_shards

    if isinstance(max_shard_size, int) and max_shard_size <= 0:
        raise ZigpassError(f"max_shard_size must be positive, got {max_shard_size}")
    try:
        split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    except ValueError as error:
        raise ZigpassError(f"max_shard_size {max_shard_size!r} is neither bytes nor text such as '5GB'") from error
    return dict(split.filename_to_tensors)


def _write_weights(folder: Path, shards: dict[str, list[str]], tensors: dict[str, Tensor], manifest: Manifest) -> None:
    described = {METADATA_KEY: manifest.to_json()}
    for name, inside in shards.items():
        part = folder / f"{name}.part"
        metadata = {"format": "pt", **(described if name == SINGLE_NAME else {})}
        save_file({tensor: tensors[tensor] for tensor in inside}, part, metadata=metadata)
        part.replace(folder / name)
    if SINGLE_NAME not in shards:
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {tensor: name for name, inside in shards.items() for tensor in inside}
        index = {"metadata": {"total_size": total, **described}, "weight_map": weight_map}
        _write_text(folder / INDEX_NAME, json.dumps(index, indent=2, sort_keys=True))
    remove_others(folder, [*shards, *([] if SINGLE_NAME in shards else [INDEX_NAME])])


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def collect(model: nn.Module) -> tuple[Manifest, dict[str, Tensor]]:
    """The description of a packed model and its tensors by the name they are stored under.

    Raises:
        ZigpassError: no packed linears, or tensors that cannot be stored as they are.
    """
    linears: dict[str, SavedLinear] = {}
    names_of: dict[int, str] = {}
    sites: dict[Site, int] = {}
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, ZigzagLinear):
            continue
        if id(module) in names_of:
            linears[names_of[id(module)]].also.append(name)
            continue
        names_of[id(module)] = name
        site = None if module.site is None else sites.setdefault(module.site, len(sites))
        linears[name] = SavedLinear(module.layout_spec, site, module.bias is not None, [])
        packed = zip(PACKED_NAMES, module.weight_tensors, strict=False)
        tensors.update({f"{name}.{part}": tensor for part, tensor in packed})
        if module.bias is not None:
            tensors[f"{name}.bias"] = module.bias
    if not linears:
        raise ZigpassError(
            f"{type(model).__name__} has no packed linears; call zigpass.prepare or zigpass.quantize_ first"
        )
    saved_sites = []
    for site_module, index in sites.items():
        state = site_module.state_dict()
        target = site_module.target_sparsity
        saved_sites.append(SavedSite(site_module.name, site_module.kind, site_module.features, list(state), target))
        tensors.update({f"{SITE_PREFIX}{index}.{part}": tensor for part, tensor in state.items()})
    shared = _add_others(model, tensors)
    _check(tensors)
    return Manifest(linears, saved_sites, shared), {name: _plain(tensor) for name, tensor in tensors.items()}


def _add_others(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Add what does not belong to packed linears, each tensor once; return the further names of shared ones.

    Buffers that are computed, not saved (rotary frequencies) are added too: casting a model changes them.
    """
    shared: dict[str, str] = {}
    first_name: dict[int, str] = {}
    for owner, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (ZigzagLinear, Site)):
            continue
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            name = f"{owner}.{leaf}" if owner else leaf
            stored = first_name.setdefault(id(tensor), name)
            if stored == name:
                tensors[name] = tensor
            else:
                shared[name] = stored
    return shared


def _check(tensors: dict[str, Tensor]) -> None:
    failures = []
    for name, tensor in tensors.items():
        if tensor.is_meta:
            failures.append(f"{name}: has no data (device meta)")
        elif type(tensor) not in (Tensor, nn.Parameter):
            failures.append(f"{name}: is a {type(tensor).__name__}; call zigpass.prepare on its linear first")
    raise_collected(failures, "these tensors cannot be saved:")


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, in one piece and without memory in common with others."""
    data = tensor.detach().cpu().contiguous()
    whole = data.untyped_storage().nbytes() == data.numel() * data.element_size()
    return data if whole and data.data_ptr() else data.clone()


def _config_of(model: nn.Module) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    if not callable(getattr(config, "to_dict", None)):
        raise ZigpassError(
            f"{type(model).__name__} is not a transformers model, so nothing could rebuild it; save its state_dict"
        )
    plain = copy.copy(config)
    if hasattr(plain, "quantization_config"):  # what it was quantized with before it was packed
        del plain.quantization_config
    document: dict[str, Any] = plain.to_dict()
    document["architectures"] = [type(model).__name__]
    document["dtype"] = str(_dtype_of(model)).removeprefix("torch.")
    document["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "version": FILE_VERSION,
        "layout_version": LAYOUT_VERSION,
    }
    return document


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
