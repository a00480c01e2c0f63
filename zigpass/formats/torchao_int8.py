"""torchao `Int8Tensor`, what `Int8WeightOnlyConfig` makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .affine import affine_weight
from .recognizer import Recognizer, Recovered
from .torchao_common import bias_of, pre_scale_refusal, shape_refusal, torchao_weight, weight_class


class TorchaoInt8(Recognizer):
    name = "torchao Int8WeightOnlyConfig"
    kept = "8-bit codes, scale (per row or per group) in its dtype, integer zero point"
    exactness = "float32 dequantization of torchao, bit for bit"
    refused = "quantized activations (Int8DynamicActivationInt8WeightConfig and static ones), act_pre_scale"

    def recognizes(self, module: nn.Module) -> bool:
        return weight_class(module) == "Int8Tensor"

    def refusal(self, module: nn.Module) -> str | None:
        weight = torchao_weight(module)
        assert weight is not None
        if weight.act_quant_kwargs is not None:
            return (
                "its activations are quantized too (act_quant_kwargs is set); zigpass takes weight-only quantization,"
                " such as Int8WeightOnlyConfig"
            )
        return pre_scale_refusal(weight) or shape_refusal(weight)

    def recover(self, module: nn.Module) -> Recovered:
        weight = torchao_weight(module)
        assert weight is not None
        codes = affine_weight(weight.qdata, weight.scale, weight.zero_point, weight.block_size, low=-128, bits=8)
        return Recovered(codes, bias_of(module))

    def dequantize(self, module: nn.Module) -> Tensor:
        weight = torchao_weight(module)
        assert weight is not None
        own: Tensor = weight.dequantize(output_dtype=torch.float32)
        return own
