"""torchao `Int4Tensor`, the plain packing format of `Int4WeightOnlyConfig` (made on CUDA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight

from .bits import unpack_bytes
from .recognizer import Recognizer, Recovered
from .torchao_common import bias_of, minimum_tolerance, pre_scale_refusal, shape_refusal, torchao_weight, weight_class


class TorchaoInt4Plain(Recognizer):
    """qdata int8 [N, K/2]: input 2j in the low nibble, 2j+1 in the high one, two's complement; scale and zero_point
    [K/G, N]; the weight is scale * code + zero_point."""

    name = "torchao Int4WeightOnlyConfig (plain)"
    kept = "4-bit codes, scale in its dtype, zero point as a float32 minimum (zero_point - 8 * scale)"
    exactness = (
        "torchao has no dequantization of it on CPUs: compared with the stored layout decoded a second way, in float32,"
        " bit for bit where float32 holds the minimum (16-bit scales), else within its rounding"
    )
    refused = "float8 activations, act_pre_scale"

    def recognizes(self, module: nn.Module) -> bool:
        return weight_class(module) == "Int4Tensor"

    def refusal(self, module: nn.Module) -> str | None:
        weight = torchao_weight(module)
        assert weight is not None
        if weight.activation_dtype == torch.float8_e4m3fn:
            return "its activations are quantized to float8; zigpass takes weight-only quantization"
        return pre_scale_refusal(weight) or shape_refusal(weight)

    def recover(self, module: nn.Module) -> Recovered:
        weight = torchao_weight(module)
        assert weight is not None
        # Two's complement with the top bit flipped is the code plus 8.
        codes = unpack_bytes(weight.qdata.view(torch.uint8), 4) ^ 8
        scale = weight.scale.T.contiguous()
        minimum = weight.zero_point.T.float() - 8 * scale.float()
        scales = GroupScales(scale, minimum, "add_float", weight.block_size[1])
        return Recovered(QuantizedWeight(codes, 4, scales), bias_of(module))

    def dequantize(self, module: nn.Module) -> Tensor:
        weight = torchao_weight(module)
        assert weight is not None
        low, high = weight.qdata << 4 >> 4, weight.qdata >> 4  # arithmetic shifts keep the sign
        codes = torch.stack([low, high], -1).flatten(-2).float()
        scale, zero = (
            part.float().repeat_interleave(weight.block_size[1], 0).T for part in (weight.scale, weight.zero_point)
        )
        dequantized: Tensor = codes * scale + zero
        return dequantized

    def tolerance(self, weight: QuantizedWeight) -> Tensor:
        return minimum_tolerance(weight)
