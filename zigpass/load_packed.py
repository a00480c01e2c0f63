"""`from_pretrained`: read back what `save_pretrained` wrote."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from zigpass.runtime import Layout, PackedWeight, ZigpassError, repack, unpack
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.quantized import FLOAT_DTYPES

from .gate_up import open_places
from .linear import ZigzagLinear
from .manifest import CONFIG_NAME, QUANT_METHOD, SITE_PREFIX, Manifest, SavedLinear
from .meta_model import fill_computed_buffers, find_meta_tensors
from .replace import replace_module
from .sites import Site
from .streamed import StreamedLinear
from .tensor_files import TensorFiles

STORED: Final = "stored"


def from_pretrained(
    folder: str | os.PathLike[str], *, band: int | Literal["stored"] | None = STORED, stream: bool = False
) -> Any:
    """Load a packed model from a folder that `save_pretrained` wrote.

    Args:
        folder: with `config.json` and `model.safetensors`, or the shards and the index of one.
        band: rows of a band of the zigzag layout; "stored" keeps that of the file, None is one band of all rows (best
            on CPUs), a number is for other devices. Changing it moves bytes and no number.
        stream: leave the weights of packed linears in the file and read each when it runs, for calibrating or
            evaluating a model larger than memory. Embeddings and norms are loaded. The file must stay.

    Returns:
        The transformers model in eval mode on the CPU, thresholds as they were.

    Raises:
        ZigpassError: a file is missing, cut short, foreign, of another version, or does not fit the model; file and
            tensors are named.
    """
    folder = Path(folder)
    model = _empty_model(folder)
    with TensorFiles(folder) as files:
        path = files.path
        manifest = Manifest.from_metadata(path, files.metadata)
        open_places(model, manifest.linears)
        _check_names(path, manifest, files.names, model)
        fill_computed_buffers(model)
        _fill(folder, model, manifest, files, band, stream)
    streamed = {f"{name}." for name, module in model.named_modules() if isinstance(module, StreamedLinear)}
    left = [name for name in find_meta_tensors(model) if not name.startswith(tuple(streamed))]
    raise_collected(left, f"{path}: these tensors of the model are not in the file:")
    return model.eval()


def _fill(
    folder: Path, model: nn.Module, manifest: Manifest, file: TensorFiles, band: int | str | None, stream: bool
) -> None:
    path = file.path
    sites = []
    for index, saved in enumerate(manifest.sites):
        site = Site(saved.name, saved.kind, saved.features)  # type: ignore[arg-type]  # the manifest checked the kind
        for part in saved.tensors:
            site.register_buffer(part, file.get_tensor(f"{SITE_PREFIX}{index}.{part}"))
        if saved.target_sparsity is not None:
            site.set_threshold(site.threshold, saved.target_sparsity)
        sites.append(site)
    taken = {f"{name}.{part}" for name, linear in manifest.linears.items() for part in linear.tensor_names()}
    for name, saved_linear in manifest.linears.items():
        try:
            new: ZigzagLinear
            bias = file.get_tensor(f"{name}.bias") if saved_linear.bias else None
            rows = Layout.parse(saved_linear.layout).n
            if bias is not None and tuple(bias.shape) != (rows,):
                raise ZigpassError(f"bias has shape {tuple(bias.shape)}, expected {(rows,)}")
            own_site = None if saved_linear.site is None else sites[saved_linear.site]
            if stream:
                new = StreamedLinear(functools.partial(_read_again, folder, name, saved_linear, band), bias, own_site)
            else:
                new = ZigzagLinear(_read_packed(file, name, saved_linear, band), bias, own_site)
        except ZigpassError as error:
            raise ZigpassError(f"{path}: {name}: {error}") from error
        for place in (name, *saved_linear.also):
            replace_module(model, place, new)
    for name in sorted(file.names - taken):
        if not name.startswith(SITE_PREFIX):
            _set_tensor(path, model, name, file.get_tensor(name))
    for name, stored in manifest.shared.items():
        owner, leaf = _owner(model, name)
        other, other_leaf = _owner(model, stored)
        setattr(owner, leaf, getattr(other, other_leaf))


def _read_packed(file: TensorFiles, name: str, linear: SavedLinear, band: int | str | None) -> PackedWeight:
    layout = Layout.parse(linear.layout)
    tensors = [file.get_tensor(f"{name}.{part}") for part in linear.tensor_names() if part != "bias"]
    packed = PackedWeight(layout, tuple(tensors))
    scales = FLOAT_DTYPES if layout.scale_axis == "in" else (torch.int32,)
    zeros = (torch.uint8,) if layout.zero_kind == "sub_int" else FLOAT_DTYPES
    allowed = {"codes": (torch.int32,), "scale": scales, "zero": zeros, "perm": (torch.int32,)}
    for part, tensor in zip(linear.tensor_names(), tensors, strict=False):
        if tensor.dtype not in allowed[part]:
            raise ZigpassError(f"{part} has dtype {tensor.dtype}, expected one of {allowed[part]}")
    if layout.permuted:
        unpack(packed)  # checks that perm is a permutation: a kernel would read outside x with another one
    if band == STORED:
        return packed
    assert not isinstance(band, str)
    return repack(packed, band)


def _read_again(folder: Path, name: str, linear: SavedLinear, band: int | str | None) -> PackedWeight:
    try:
        with TensorFiles(folder) as files:
            return _read_packed(files, name, linear, band)
    except ZigpassError as error:
        raise ZigpassError(f"{name} cannot be read again, a streamed model needs its files: {error}") from error


def _set_tensor(path: Path, model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, leaf = _owner(model, name)
    old = getattr(owner, leaf)
    if old.shape != tensor.shape:
        raise ZigpassError(f"{path}: {name} has shape {tuple(tensor.shape)}, the model needs {tuple(old.shape)}")
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False) if isinstance(old, nn.Parameter) else tensor)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, leaf = name.rpartition(".")
    return model.get_submodule(parent), leaf


def _check_names(path: Path, manifest: Manifest, names: set[str], model: nn.Module) -> None:
    """Every tensor of the description is in the file, and every tensor and linear of the file is in the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    expected, failures = set(), []
    for index, site in enumerate(manifest.sites):
        expected |= {f"{SITE_PREFIX}{index}.{part}" for part in site.tensors}
    for name, linear in manifest.linears.items():
        expected |= {f"{name}.{part}" for part in linear.tensor_names()}
        layout = Layout.parse(linear.layout)
        for place in (name, *linear.also):
            module = modules.get(place)
            sizes = (getattr(module, "out_features", layout.n), getattr(module, "in_features", layout.k))
            if module is None:
                failures.append(f"{place}: {type(model).__name__} has no such module")
            elif sizes != (layout.n, layout.k):
                failures.append(f"{place}: the file has {layout.n} x {layout.k}, the model {sizes[0]} x {sizes[1]}")
    failures += [f"{name}: missing in the file" for name in sorted(expected - names)]
    own = {
        name
        for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    }
    failures += [
        f"{name}: {type(model).__name__} has no such tensor"
        for name in sorted((names - expected) | manifest.shared.keys())
        if name not in own
    ]
    raise_collected(failures, f"{path}: the file does not fit the model that {CONFIG_NAME} describes:")


def _empty_model(folder: Path) -> Any:
    """The model that the folder's configuration describes, without memory for its weights."""
    import transformers

    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ZigpassError(f"{path}: no such file")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        method = document.pop("quantization_config", {}).get("quant_method")
        architecture = str(document["architectures"][0])
        config_class = transformers.AutoConfig.for_model(document.pop("model_type")).__class__
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ZigpassError(f"{path}: not the configuration of a transformers model ({error!r})") from error
    if method != QUANT_METHOD:
        raise ZigpassError(
            f"{path}: quant_method is {method!r}, not {QUANT_METHOD!r}: this folder was not written by"
            " zigpass.save_pretrained; load it with transformers and call zigpass.prepare"
        )
    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ZigpassError(
            f"{path}: this transformers ({transformers.__version__}) has no model class {architecture!r}"
        )
    model_class: Any = found
    config = config_class.from_dict(document)
    config._name_or_path = str(folder)
    with torch.device("meta"):
        model = model_class._from_config(config)
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model
