"""`quantize_`: replace the float linears of a model by packed ones, in place."""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError, pack
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.memory_errors import naming_out_of_memory
from zigpass.runtime.quantized import FLOAT_DTYPES

from .config import ZigzagConfig
from .float_linears import bias_of, is_float_linear, weight_of
from .gate_up import GateUp, holds_gate_and_up
from .gram import layers_with_grams
from .linear import ZigzagLinear
from .obstacles import find_obstacle
from .progress import track
from .quantizers import quantize_weight
from .replace import SiteRegistry, replace_module
from .tokens import Texts, text_windows

logger = logging.getLogger("zigpass.quantize")

QUANTIZE_ELSEWHERE = "free some, or call zigpass.quantize_ on the CPU and move the model"

FilterFn = Callable[[nn.Module, str], bool]


def quantize_(
    model: nn.Module,
    config: ZigzagConfig | None = None,
    *,
    filter_fn: FilterFn | None = None,
    overrides: Mapping[str, ZigzagConfig | None] | None = None,
    calibration: Texts | None = None,
    tokenizer: Any | None = None,
    window: int = 512,
    num_windows: int = 8,
    progress: bool = True,
) -> nn.Module:
    """Quantize the linears of a float model and pack them, in place and layer by layer.

    Every chosen layer is checked before the first one is touched: on an error the model is as it was.

    Args:
        model: any module; float32, bfloat16 or float16 weights.
        config: how to quantize; default `ZigzagConfig()`.
        filter_fn: called with (module, qualified name) for each linear (`nn.Linear`, transformers' `Conv1D`); True
            means quantize it. By default all but the output head, which the paper leaves alone.
        overrides: qualified-name patterns (`*` and `?` as in file names) to another config, or to None to leave
            those layers as they are. The last pattern that fits wins.
        calibration: text or token ids that the model reads while it is quantized, for the method "gptq".
        tokenizer: a Hugging Face tokenizer for `calibration`; None looks beside the model's checkpoint.
        window, num_windows: tokens of the calibration text that are read together, and how often.
        progress: show a progress bar.

    Returns:
        The same model.

    Raises:
        ZigpassError: one error for all layers that cannot be quantized (empty, NaN or infinite weights, unsupported
            dtype, hooks, adapters, offloaded weights), each with its name and reason; or a pattern that fits no layer,
            nothing to quantize, or the method "gptq" without calibration text. Also no memory for a layer: those before
            it stay quantized, and a second call goes on with it.
    """
    config = config or ZigzagConfig()
    chosen = _choose(model, config, filter_fn or _not_output_head(model), overrides or {})
    modules = dict(model.named_modules())
    refusals = {name: find_obstacle(linear, name, modules) or _refusal(linear) for name, (linear, _) in chosen.items()}
    del modules  # so that each float weight is freed once it is replaced
    raise_collected(
        (f"{name}: {reason}" for name, reason in refusals.items() if reason),
        "these layers cannot be quantized; mend them or leave them out with filter_fn or overrides={name: None}:",
    )
    layers: Iterator[tuple[str, Tensor | None]]
    if any(layer_config.method == "gptq" for _, layer_config in chosen.values()):
        if calibration is None:
            raise ZigpassError('method "gptq" needs text to fit the weights to; pass calibration=, or use method="mse"')
        windows = text_windows(calibration, tokenizer, model, window, num_windows)
        layers = layers_with_grams(model, list(chosen), windows, progress=progress)
    else:
        layers = ((name, None) for name in track(list(chosen), "quantizing", show=progress))
    _report_short_groups(chosen)
    sites = SiteRegistry(model)
    for name, gram in layers:
        linear, layer_config = chosen.pop(name)
        try:
            with naming_out_of_memory("quantizing it", QUANTIZE_ELSEWHERE):
                new = _quantized(linear, layer_config, gram, sites, name)
        except ZigpassError as error:
            raise ZigpassError(f"{name}: {error}") from error
        replace_module(model, name, new)
    return model


def _quantized(
    linear: nn.Module, config: ZigzagConfig, gram: Tensor | None, sites: SiteRegistry, name: str
) -> nn.Module:
    """The packed form of one linear. Gate and up in one weight are quantized apart: no scale then spans both."""
    weight, bias = weight_of(linear).contiguous(), bias_of(linear)
    site = sites.site_for(name, weight.shape[1])
    count = 2 if holds_gate_and_up(name, weight.shape[0]) else 1
    biases = (None,) * count if bias is None else bias.clone().chunk(count)
    parts = [
        ZigzagLinear(pack(quantize_weight(rows, config, gram), config.band), part, site)
        for rows, part in zip(weight.chunk(count), biases, strict=True)
    ]
    return GateUp(*parts) if count == 2 else parts[0]


def _choose(
    model: nn.Module,
    config: ZigzagConfig,
    filter_fn: FilterFn,
    overrides: Mapping[str, ZigzagConfig | None],
) -> dict[str, tuple[nn.Module, ZigzagConfig]]:
    linears = {name: module for name, module in model.named_modules() if is_float_linear(module)}
    if "" in linears:
        raise ZigpassError("the model is itself one nn.Linear, which cannot be replaced in place; wrap it in a module")
    if not linears:
        raise ZigpassError(f"{type(model).__name__} has no nn.Linear layers to quantize")
    for pattern in overrides:
        if not fnmatch.filter(linears, pattern):
            nearest = difflib.get_close_matches(pattern, linears, n=1, cutoff=0.0)
            raise ZigpassError(f"overrides: {pattern!r} fits no linear layer; the nearest name is {nearest[0]!r}")
    chosen: dict[str, tuple[nn.Module, ZigzagConfig]] = {}
    for name, module in linears.items():
        matching = [pattern for pattern in overrides if fnmatch.fnmatchcase(name, pattern)]
        layer_config = overrides[matching[-1]] if matching else config
        if layer_config is not None and (matching or filter_fn(module, name)):
            chosen[name] = (module, layer_config)
    if not chosen:
        raise ZigpassError(f"filter_fn and overrides leave none of the {len(linears)} linear layers to quantize")
    return chosen


def _not_output_head(model: nn.Module) -> FilterFn:
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    return lambda module, name: module is not head and name.rpartition(".")[2] != "lm_head"


def _refusal(linear: nn.Module) -> str | None:
    weight = weight_of(linear)
    if weight.shape[0] == 0 or weight.shape[1] == 0:
        return f"its weight is empty, N={weight.shape[0]}, K={weight.shape[1]}"
    if weight.dtype not in FLOAT_DTYPES:
        return f"its weight has dtype {weight.dtype}, supported are {', '.join(map(str, FLOAT_DTYPES))}"
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        return f"{bad} of its {weight.numel()} weights are NaN or infinite"
    return None


def _report_short_groups(chosen: Mapping[str, tuple[nn.Module, ZigzagConfig]]) -> None:
    short: dict[tuple[int, int], int] = {}
    for linear, config in chosen.values():
        k = weight_of(linear).shape[1]
        if config.short_group(k):
            key = (config.group_size, k)
            short[key] = short.get(key, 0) + 1
    for (group_size, k), count in short.items():
        logger.warning(
            "group_size %d does not divide K=%d in %d layers: their last group has %d inputs",
            group_size, k, count, k % group_size,
        )  # fmt: skip
