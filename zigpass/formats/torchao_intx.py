"""torchao `IntxUnpackedToInt8Tensor`, what `IntxWeightOnlyConfig` makes: int8 storage of 1- to 8-bit codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .affine import affine_weight
from .recognizer import Recognizer, Recovered
from .torchao_common import bias_of, shape_refusal, torchao_weight, weight_class
from .verify import ROWS_AT_ONCE


class TorchaoIntx(Recognizer):
    name = "torchao IntxWeightOnlyConfig"
    kept = "codes of int1 to int8 (stored in 2, 4 or 8 bits), scale in its dtype, integer zero point"
    exactness = "float32 dequantization of torchao, bit for bit"
    refused = "quantized activations (Int8DynamicActivationIntxWeightConfig)"

    def recognizes(self, module: nn.Module) -> bool:
        return weight_class(module) == "IntxUnpackedToInt8Tensor"

    def refusal(self, module: nn.Module) -> str | None:
        weight = torchao_weight(module)
        assert weight is not None
        if weight.activation_quantization is not None:
            return (
                f"its activations are quantized too ({weight.activation_quantization}); zigpass takes weight-only"
                " quantization, such as IntxWeightOnlyConfig"
            )
        return shape_refusal(weight)

    def recover(self, module: nn.Module) -> Recovered:
        weight = torchao_weight(module)
        assert weight is not None
        bits = int(str(weight.target_dtype).removeprefix("torch.int"))
        codes = affine_weight(
            weight.qdata, weight.scale, weight.zero_point, weight.block_size, low=-(1 << (bits - 1)), bits=bits
        )
        return Recovered(codes, bias_of(module))

    def dequantize(self, module: nn.Module) -> Tensor:
        from torchao.quantization.quant_primitives import dequantize_affine

        weight = torchao_weight(module)
        assert weight is not None
        own = torch.empty(weight.shape, dtype=torch.float32, device=weight.qdata.device)
        step = ROWS_AT_ONCE * weight.block_size[0]
        for start in range(0, weight.shape[0], step):  # in pieces: torchao takes some 20 bytes a weight on the way
            rows = slice(start, start + step)
            blocks = slice(start // weight.block_size[0], (start + step) // weight.block_size[0])
            # Not weight.dequantize(): that rounds to the dtype of the model on the way.
            own[rows] = dequantize_affine(
                weight.qdata[rows],
                weight.block_size,
                weight.scale[blocks],
                weight.zero_point[blocks],
                torch.int8,
                output_dtype=torch.float32,
            )
        return own
