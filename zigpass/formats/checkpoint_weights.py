"""Packed linears straight from the tensors of a safetensors checkpoint, without the library that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from zigpass.runtime import QuantizedWeight, ZigpassError

from .awq import recover_awq
from .compressed_tensors_packed import BITS as PACKED_BITS
from .compressed_tensors_packed import FORMAT, PackedTensors, recover_packed
from .gptq import BITS as GPTQ_BITS
from .gptq import recover_gptq

Reader = Callable[[Mapping[str, Tensor]], QuantizedWeight]


def find_reader(settings: Mapping[str, Any]) -> tuple[str, Reader]:
    """The tensor that marks a packed linear, and what makes codes and scales of the tensors of one.

    Args:
        settings: `quantization_config` of the checkpoint's config.json.

    Raises:
        ZigpassError: a method or a setting that is not relaid.
    """
    method = str(settings.get("quant_method"))
    if method not in METHODS:
        raise ZigpassError(f"quant_method is {method!r}; checkpoints are read of {', '.join(METHODS)}")
    return METHODS[method](settings)


def _compressed_tensors(settings: Mapping[str, Any]) -> tuple[str, Reader]:
    groups = list(dict(settings.get("config_groups", {})).values())
    if settings.get("format") != FORMAT or not groups:
        raise ZigpassError(f"the format is {settings.get('format')!r}; only {FORMAT!r} holds packed integer codes")
    if any(group.get("input_activations") or group.get("output_activations") for group in groups):
        raise ZigpassError("its activations are quantized too; zigpass takes weight-only schemes such as W4A16")
    widths = {group["weights"]["num_bits"] for group in groups}
    if len(widths) != 1 or not widths <= set(PACKED_BITS):
        raise ZigpassError(f"its groups have codes of {sorted(widths)} bits; one width of {PACKED_BITS} is needed")
    bits = widths.pop()

    def read(tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        names = ("packed", "scale", "shape", "zero_point", "g_idx")
        return recover_packed(PackedTensors(*(tensors.get(f"weight_{name}") for name in names)), bits)  # type: ignore[arg-type]

    return "weight_packed", read


def _gptq(settings: Mapping[str, Any]) -> tuple[str, Reader]:
    bits = settings.get("bits")
    if bits not in GPTQ_BITS:
        raise ZigpassError(f"its codes have {bits} bits; supported are {GPTQ_BITS}")
    # The order of `recover_gptq`: version 2 holds zeros as they are, version 1 less one.
    which = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def read(tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        parts = [tensors[name] for name in ("qweight", "qzeros", "scales", "g_idx")]
        return list(recover_gptq(*parts))[which]

    return "qweight", read


def _awq(settings: Mapping[str, Any]) -> tuple[str, Reader]:
    bits, version = settings.get("bits", 4), str(settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise ZigpassError(f"it has {bits} bits in the packing {version!r}; supported are 4 bits in 'gemm'")

    def read(tensors: Mapping[str, Tensor]) -> QuantizedWeight:
        return recover_awq(tensors["qweight"], tensors["qzeros"], tensors["scales"])

    return "qweight", read


METHODS: Final[dict[str, Callable[[Mapping[str, Any]], tuple[str, Reader]]]] = {
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
}
"""By `quant_method`."""

PARTS: Final = (
    *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    *("qweight", "qzeros", "scales", "g_idx"),
)
"""Names of tensors that belong to a packed linear."""


def check_finite(weight: QuantizedWeight) -> None:
    """There is no library to compare with, but a scale that is no number says that the tensors are damaged."""
    scale = getattr(weight.scales, "scale", None)
    if scale is not None and not bool(torch.isfinite(scale).all()):
        raise ZigpassError(f"{int((~torch.isfinite(scale)).sum())} of its {scale.numel()} scales are NaN or infinite")
