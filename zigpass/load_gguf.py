"""`load_gguf`: a Hugging Face model whose linears are the GGUF file's own codes, relaid.

Nothing passes through fp16 or is quantized again: matrices of the types in `formats.ggml_blocks.READERS` keep their
codes, scales and minimums, everything else (embeddings, norms) is dequantized to the asked dtype. The output head is
packed too where its type allows, but never sparse.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError, pack
from zigpass.runtime.errors import raise_collected

from .formats.ggml_blocks import READERS
from .formats.gguf_architectures import ARCHITECTURES, Architecture
from .formats.gguf_file import GgufFile
from .linear import ZigzagLinear
from .meta_model import fill_computed_buffers, find_meta_tensors
from .progress import track
from .replace import SiteRegistry, replace_module


def load_gguf(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, progress: bool = True) -> nn.Module:
    """Load a causal language model from a GGUF file, its linears packed in the zigzag layout.

    Args:
        path: the file.
        dtype: dtype of embeddings, norms and activations.
        progress: show a progress bar.

    Returns:
        A Hugging Face model in eval mode on the CPU; thresholds are 0 (dense) until `calibrate`.

    Raises:
        ZigpassError: the file is missing, foreign or cut short, its architecture is not supported, or some of its
            matrices have a type that cannot be relaid (all of them are named).
    """
    file = GgufFile(Path(path))
    architecture = _architecture_of(file)
    model = _empty_model(file.path)
    names = _tensor_names(model, file)
    linears = {
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not model.get_output_embeddings()
    }
    _check_shapes(file, model, names)
    _check_tensors(file, names, linears)
    fill_computed_buffers(model)
    sites = SiteRegistry(model)
    for parameter, tensor_name in track(list(names.items()), "loading", show=progress):
        owner, _, leaf = parameter.rpartition(".")
        if owner in linears and leaf == "weight":
            order = architecture.row_order(tensor_name, model.config)
            packed = pack(_reorder_rows(file.quantized(tensor_name), order))
            bias_name = names.get(f"{owner}.bias")
            bias = None
            if bias_name is not None:
                bias = architecture.restore(bias_name, file.dequantized(bias_name), model.config).to(dtype)
            replace_module(model, owner, ZigzagLinear(packed, bias, sites.site_for(owner, packed.layout.k)))
        elif owner not in linears:
            value = architecture.restore(tensor_name, file.dequantized(tensor_name), model.config).to(dtype)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    _pack_head(model, file, names)
    left = find_meta_tensors(model)
    raise_collected(left, f"{type(model).__name__}: these tensors are neither in the file nor computed:")
    model.config.dtype = dtype
    model.eval()
    loaded: nn.Module = model
    return loaded


def _architecture_of(file: GgufFile) -> Architecture:
    if file.architecture not in ARCHITECTURES:
        raise ZigpassError(
            f"{file.path}: GGUF architecture {file.architecture!r} is not supported, supported:"
            f" {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[file.architecture]


def _reorder_rows(weight: QuantizedWeight, order: Tensor | None) -> QuantizedWeight:
    if order is None:
        return weight
    scales = weight.scales
    assert isinstance(scales, GroupScales)  # every relaid GGML type has scales along the inputs
    moved = GroupScales(scales.scale[order], scales.zero[order], scales.zero_kind, scales.group_size)
    return QuantizedWeight(weight.codes[order], weight.bits, moved)


def _empty_model(path: Path) -> Any:
    """The model the file describes, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.config._name_or_path = str(path)
    return model


def _tensor_names(model: nn.Module, file: GgufFile) -> dict[str, str]:
    """Parameter name -> GGUF tensor name; a tied output head has none of its own.

    Raises:
        ZigpassError: a parameter without a tensor.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    name_map = get_tensor_name_map(arch, int(file.metadata(f"{file.architecture}.block_count")))
    tied = set(getattr(model, "all_tied_weights_keys", ()) or ())
    names, missing = {}, []
    for parameter, _ in model.named_parameters(remove_duplicate=False):
        tensor_name = name_map.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if tensor_name in file.tensors:
            names[parameter] = tensor_name
        elif parameter not in tied:
            missing.append(f"{parameter} (tensor {tensor_name})")
    raise_collected(missing, f"{file.path}: the file lacks tensors that {type(model).__name__} needs:")
    return names


def _check_shapes(file: GgufFile, model: nn.Module, names: dict[str, str]) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    failures = []
    for parameter, tensor_name in names.items():
        stored, needed = file.shape(tensor_name), tuple(parameters[parameter].shape)
        if stored != needed:
            failures.append(f"{parameter} ({tensor_name}): {stored} in the file, {needed} in {type(model).__name__}")
    raise_collected(failures, f"{file.path}: transformers reads another model from this file than its tensors are:")


def _check_tensors(file: GgufFile, names: dict[str, str], linears: set[str]) -> None:
    failures = []
    for parameter, tensor_name in names.items():
        owner, _, leaf = parameter.rpartition(".")
        if owner in linears and leaf == "weight" and file.type_name(tensor_name) not in READERS:
            failures.append(f"{owner} ({tensor_name}): {file.type_name(tensor_name)}")
    raise_collected(
        failures, f"{file.path}: only {', '.join(READERS)} can be relaid without loss; these have another type:"
    )


def _pack_head(model: Any, file: GgufFile, names: dict[str, str]) -> None:
    """Give the output head packed weights, its own or those of the embedding it is tied to.

    A token reads the whole head: in 8 bits that is a quarter of the bytes of float32.
    """
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    tensor_name = names.get(f"{name}.weight", names[f"{embedding}.weight"])
    if file.type_name(tensor_name) in READERS:
        replace_module(model, name, ZigzagLinear(pack(file.quantized(tensor_name)), head.bias, None))
        model.config.tie_word_embeddings = False  # nothing is left to tie
