"""What `zigpass inspect` and `zigpass make-repro` are pointed at, by one word on the command line."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import logging
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zigpass.cache_argument import cache_argument, cache_arguments
from zigpass.config import ZigzagConfig
from zigpass.gguf_tokenizer import load_gguf_tokenizer
from zigpass.load_gguf import load_gguf
from zigpass.prepare import prepare, survey
from zigpass.quantize import quantize_
from zigpass.runtime import ZigpassError
from zigpass.tools.hub_cache import hub_folder

if TYPE_CHECKING:
    from torch.export import ExportedProgram

log = logging.getLogger(__name__)
CACHE_LENGTH = 64
"""Tokens that the key-value cache of the inspected decode step has room for."""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model and one call of it; `tokenizer` is None for what is not a language model from a folder or a file."""

    title: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tokenizer: Any = None


@dataclasses.dataclass(frozen=True)
class ProgramSource:
    """What `torch.export.save` wrote."""

    title: str
    program: ExportedProgram


@dataclasses.dataclass(frozen=True)
class OnnxSource:
    """An ONNX file."""

    title: str
    path: Path


Source = ModelSource | ProgramSource | OnnxSource


def load_source(word: str, config: ZigzagConfig | None = None, tokens: int = 1) -> Source:
    """Load what a word names; nothing is downloaded.

    Args:
        word: a GGUF file, a Hugging Face folder or the id of a model in the local hub cache, a `.pt2` or `.onnx` file,
            or "module:factory" ("file.py:factory"), where the factory returns (model, args) or (model, args, kwargs).
        config: how to quantize a model that comes as floats; without it a float model stays as it is.
        tokens: tokens that a language model is called with.

    Raises:
        ZigpassError: nothing has that name, or it does not hold what it should.
    """
    path = Path(word)
    if path.suffix == ".pt2":
        return ProgramSource(path.stem, _load_program(path))
    if path.suffix == ".onnx":
        return OnnxSource(path.name, _existing(path))
    place, separator, name = word.rpartition(":")
    if separator and not path.exists():
        return _call_factory(place, name, config, tokens)
    return _load_language_model(path if path.exists() else hub_folder(word), word, config, tokens)


def _load_program(path: Path) -> ExportedProgram:
    try:
        return torch.export.load(_existing(path))
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ZigpassError(f"{path}: not a program that torch.export.save wrote ({error})") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ZigpassError(f"{path}: no such file")
    return path


def _call_factory(place: str, name: str, config: ZigzagConfig | None, tokens: int) -> ModelSource:
    module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        public = [key for key in own if inspect.isfunction(getattr(module, key)) and not key.startswith("_")]
        raise ZigpassError(f"{place} has no function {name!r}; it has {', '.join(public) or 'none'}")
    made = factory()
    model, *rest = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, nn.Module):
        raise ZigpassError(f"{place}:{name} returned {type(model).__name__}, expected a module or (module, args)")
    _quantize(model, config)
    args, kwargs = (*rest, (), {})[:2] if rest else decode_step(model, tokens)
    return ModelSource(f"{Path(place).name}:{name}", model.eval(), tuple(args), dict(kwargs))


def _import(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ZigpassError(f"cannot import {name} ({error}); give a file as path/to/file.py:factory") from error


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, _existing(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _load_language_model(path: Path, word: str, config: ZigzagConfig | None, tokens: int) -> ModelSource:
    from zigpass.tools.load_model import load_unpacked

    if path.is_file() and config is None:
        model, tokenizer = load_gguf(path), _tokenizer_of(path)
    else:
        model, tokenizer = load_unpacked(path, config)
    _quantize(model, config)
    args, kwargs = decode_step(model, tokens)
    return ModelSource(path.stem if path.is_file() else word, model, args, kwargs, tokenizer)


def _tokenizer_of(path: Path) -> Any | None:
    """The tokenizer in a GGUF file; one without is inspected all the same, only not on text."""
    try:
        return load_gguf_tokenizer(path)
    except (ValueError, KeyError) as error:
        log.warning("%s holds no tokenizer that can be read (%s): activations are those of one call", path.name, error)
        return None


def _quantize(model: nn.Module, config: ZigzagConfig | None) -> None:
    """Pack what is quantized already; quantize floats only when asked to."""
    if any(finding.recognized for finding in survey(model)):
        prepare(model)
    elif config is not None:
        quantize_(model, config)


def decode_step(model: nn.Module, tokens: int = 1) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one step of a Hugging Face causal model with a static cache.

    Raises:
        ZigpassError: it is no such model.
    """
    if cache_argument(model) is None:
        raise ZigpassError(
            f"{type(model).__name__} is not a causal language model of the Hugging Face interface: let the factory"
            " return (model, args), with the arguments of one call"
        )
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=CACHE_LENGTH)
    first = torch.zeros((1, 1), dtype=torch.int64, device=next(model.parameters()).device)
    with torch.inference_mode():
        model(first, **cache_arguments(model, cache))  # gives the cache its tensors
    return (first.expand(1, tokens).contiguous(),), cache_arguments(model, cache)
