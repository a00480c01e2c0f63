"""torchao `Int4OpaqueTensor`, its 4-bit weight for CPUs; the byte order depends on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError

from .recognizer import Recognizer, Recovered
from .torchao_common import bias_of, minimum_tolerance, pre_scale_refusal, shape_refusal, torchao_weight, weight_class

COLUMNS_AT_ONCE = 512


class TorchaoInt4Opaque(Recognizer):
    """scale_and_zero [K/G, N, 2]; the weight is scale * (code - 8) + zero.

    Nothing says where in qdata a code lies, so the kernel that reads it is asked: with scale 1 and zero 0 its product
    with a unit vector is a column of codes, exactly.
    """

    name = "torchao PrototypeInt4WeightOnlyConfig (CPU)"
    kept = "4-bit codes, scale in its dtype, zero as a float32 minimum (zero - 8 * scale); tinygemm and HQQ parameters"
    exactness = (
        "output of torchao's kernel in float32 for unit vectors: bit for bit where float32 holds the minimum (16-bit"
        " models), else (float32 models) within its rounding"
    )
    refused = "quantized activations (Int8DynamicActivationInt4WeightConfig), act_pre_scale"

    def recognizes(self, module: nn.Module) -> bool:
        return weight_class(module) == "Int4OpaqueTensor"

    def refusal(self, module: nn.Module) -> str | None:
        weight = torchao_weight(module)
        assert weight is not None
        if weight.act_mapping_type is not None:
            return (
                f"its activations are quantized too ({weight.act_mapping_type}); zigpass takes weight-only"
                " quantization, such as PrototypeInt4WeightOnlyConfig"
            )
        if weight.device.type != "cpu":
            return f"its codes lie in the order of a CPU kernel, but the tensor is on {weight.device}"
        return pre_scale_refusal(weight) or shape_refusal(weight)

    def recover(self, module: nn.Module) -> Recovered:
        weight = torchao_weight(module)
        assert weight is not None
        scale, zero = (part.T.contiguous() for part in weight.scale_and_zero.unbind(-1))
        plain = torch.zeros(weight.scale_and_zero.shape, dtype=torch.float32)
        plain[..., 0] = 1
        codes = _product_with_units(weight, plain) + 8
        if not bool(((codes >= 0) & (codes <= 15) & (codes == codes.round())).all()):
            raise ZigpassError(f"{self.name}: the kernel does not give whole codes of 4 bits")
        minimum = zero.float() - 8 * scale.float()
        scales = GroupScales(scale, minimum, "add_float", weight.block_size[1])
        return Recovered(QuantizedWeight(codes.to(torch.uint8), 4, scales), bias_of(module))

    def dequantize(self, module: nn.Module) -> Tensor:
        weight = torchao_weight(module)
        assert weight is not None
        return _product_with_units(weight, weight.scale_and_zero.float())

    def tolerance(self, weight: QuantizedWeight) -> Tensor:
        return minimum_tolerance(weight)


def _product_with_units(weight: Any, scale_and_zero: Tensor) -> Tensor:
    n, k = weight.shape
    out = torch.empty(n, k, dtype=scale_and_zero.dtype)
    for start in range(0, k, COLUMNS_AT_ONCE):
        count = min(COLUMNS_AT_ONCE, k - start)
        unit = torch.zeros(count, k, dtype=scale_and_zero.dtype)
        unit[torch.arange(count), torch.arange(start, start + count)] = 1
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(unit, weight.qdata, weight.block_size[1], scale_and_zero)
        out[:, start : start + count] = product.T
    return out
