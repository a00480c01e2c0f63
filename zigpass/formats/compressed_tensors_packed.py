"""compressed-tensors `pack-quantized`, what llm-compressor writes.

weight_packed int32 [N, K * bits / 32], lowest bits first along the inputs, each code moved up by 2**(bits-1);
weight_scale [N, G]; weight_zero_point, when asymmetric, packed the same way along the outputs, [N * bits / 32, G].
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError

from .bits import stored_bits, unpack_words
from .gptq import group_order
from .recognizer import Recognizer, Recovered

FORMAT: Final = "pack-quantized"
BITS: Final = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class PackedTensors:
    """The tensors of one packed linear, under their names in the checkpoint without the prefix `weight_`."""

    packed: Tensor
    scale: Tensor
    shape: Tensor
    zero_point: Tensor | None = None
    g_idx: Tensor | None = None


class CompressedTensorsPacked(Recognizer):
    name = "compressed-tensors pack-quantized"
    kept = "codes of 2, 4 or 8 bits, scale per group, row or tensor in its dtype, integer zeros"
    exactness = "decompression of the compressed-tensors library in its dtype, bit for bit"
    refused = "quantized activations, other widths, other formats (nvfp4, mxfp4, float8, int8), decompressed modules"

    def recognizes(self, module: nn.Module) -> bool:
        return getattr(module, "quantization_scheme", None) is not None and isinstance(module, nn.Linear)

    def refusal(self, module: nn.Module) -> str | None:
        source: Any = module
        scheme = source.quantization_scheme
        if getattr(source, "weight_packed", None) is None:
            kind = getattr(scheme.format, "value", scheme.format)
            return (
                f"it holds no packed codes (format {kind}, {source.quantization_status}); load it with dequantize=False"
            )
        if scheme.input_activations is not None or getattr(scheme, "output_activations", None) is not None:
            return "its activations are quantized too; zigpass takes weight-only schemes such as W4A16"
        if (
            scheme.weights.num_bits not in BITS
            or str(getattr(scheme.weights.type, "value", scheme.weights.type)) != "int"
        ):
            return f"its codes are {scheme.weights.type} of {scheme.weights.num_bits} bits; supported are int of {BITS}"
        if getattr(source, "weight_g_idx", None) is not None:
            return "its inputs are reordered (weight_g_idx), which the library no longer dequantizes"
        return None

    def recover(self, module: nn.Module) -> Recovered:
        source: Any = module
        tensors = PackedTensors(
            source.weight_packed.detach(),
            source.weight_scale.detach(),
            source.weight_shape,
            getattr(source, "weight_zero_point", None),
        )
        return Recovered(recover_packed(tensors, source.quantization_scheme.weights.num_bits), source.bias)

    def dequantize(self, module: nn.Module) -> Tensor:
        return decompress(module)

    def leave(self, model: nn.Module) -> None:
        # The library decompresses its model before the first call; there is nothing left for it to do.
        hook = model.__dict__.pop("ct_decompress_hook", None)
        if hook is not None:
            hook.remove()


def decompress(module: nn.Module) -> Tensor:
    """The weight as the library decompresses it; the module stays compressed."""
    try:
        from compressed_tensors.compressors.base import BaseCompressor
    except ImportError as error:
        raise ZigpassError(
            "checking a compressed-tensors module needs its library: pip install compressed-tensors"
        ) from error
    source: Any = module
    compressor = BaseCompressor.get_value_from_registry(FORMAT)
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    weight: Tensor = compressor.decompress(state, source.quantization_scheme)["weight"]
    return weight


def recover_packed(tensors: PackedTensors, bits: int) -> QuantizedWeight:
    """The weight of the tensors of one packed linear.

    Raises:
        ZigpassError: shapes that do not fit together.
    """
    n, k = (int(size) for size in tensors.shape)
    if tuple(tensors.packed.shape) != (n, -(-k * bits // 32)):
        raise ZigpassError(
            f"weight_packed has shape {tuple(tensors.packed.shape)} for a {n} x {k} weight of {bits} bits"
        )
    codes = unpack_words(tensors.packed, bits)[:, :k].contiguous()
    scale = tensors.scale.expand(n, 1) if tensors.scale.numel() == 1 else tensors.scale.reshape(n, -1)
    groups = scale.shape[1]
    if tensors.zero_point is None:
        zero = torch.full((n, groups), 1 << (bits - 1), dtype=torch.uint8, device=codes.device)
    elif tuple(tensors.zero_point.shape) != (-(-n * bits // 32), groups):
        raise ZigpassError(
            f"weight_zero_point has shape {tuple(tensors.zero_point.shape)} for {n} rows and {groups} groups of"
            f" {bits} bits"
        )
    else:
        zero = unpack_words(tensors.zero_point.detach().T, bits)[:, :n].T.contiguous()
    order, group_size = (None, -(-k // groups)) if tensors.g_idx is None else group_order(tensors.g_idx, groups)
    perm = None
    if order is not None:
        codes, perm = codes[:, order], order.to(torch.int32)
    scales = GroupScales(scale.contiguous(), zero, "sub_int", group_size)
    return QuantizedWeight(codes, stored_bits(bits), scales, perm)
