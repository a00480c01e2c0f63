"""torchao `Int4TilePackedTo4dTensor`, what `Int4WeightOnlyConfig` makes by default on CUDA.

qdata int32 [N/8, K/128, 32, 4] is the order of the tensor cores' m16n8k16 tile: a word holds eight codes of one row.
Source of the order: `_convert_weight_to_int4pack` of PyTorch (aten/src/ATen/native/cuda/int4mm.cu).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight

from .bits import unpack_words
from .recognizer import Recognizer, Recovered
from .torchao_common import bias_of, pre_scale_refusal, shape_refusal, torchao_weight, weight_class

ROWS_OF_TILE: Final = 8
LANES_OF_ROW: Final = 4
COLUMNS_OF_WORD: Final = 32
"""Inputs that the words of four neighbouring lanes hold together."""
COLUMNS_AT_ONCE: Final = 512


class TorchaoInt4Tiled(Recognizer):
    """scale_and_zero bfloat16 [K/G, N, 2]; the weight is scale * (code - 8) + zero. N and K are padded."""

    name = "torchao Int4WeightOnlyConfig (tile-packed, on CUDA)"
    kept = "4-bit codes, bfloat16 scale, zero as a float32 minimum (zero - 8 * scale)"
    exactness = "output of torch's CUDA kernel for unit vectors, within one rounding to bfloat16"
    refused = "tensors that are not on CUDA, where nothing can be compared with them; act_pre_scale"

    def recognizes(self, module: nn.Module) -> bool:
        return weight_class(module) == "Int4TilePackedTo4dTensor"

    def refusal(self, module: nn.Module) -> str | None:
        weight = torchao_weight(module)
        assert weight is not None
        if weight.device.type != "cuda":
            return (
                f"its codes lie in the order of a CUDA kernel and the tensor is on {weight.device}, where no kernel"
                " reads it; call prepare while the model is on CUDA, or quantize with"
                " IntxWeightOnlyConfig(weight_dtype=torch.int4)"
            )
        return pre_scale_refusal(weight) or shape_refusal(weight)

    def recover(self, module: nn.Module) -> Recovered:
        weight = torchao_weight(module)
        assert weight is not None
        n, k = weight.shape
        group_size = weight.block_size[1]
        groups = -(-k // group_size)
        scale, zero = (part.T[:n, :groups].contiguous() for part in weight.scale_and_zero.unbind(-1))
        scales = GroupScales(scale, zero.float() - 8 * scale.float(), "add_float", group_size)
        return Recovered(QuantizedWeight(untile(weight.qdata)[:n, :k].contiguous(), 4, scales), bias_of(module))

    def dequantize(self, module: nn.Module) -> Tensor:
        weight: Any = torchao_weight(module)
        n, k = weight.shape
        out = torch.empty(n, k, dtype=torch.bfloat16, device=weight.device)
        padded_k = weight.qdata.shape[1] * weight.qdata.shape[3] * COLUMNS_OF_WORD
        for start in range(0, k, COLUMNS_AT_ONCE):
            count = min(COLUMNS_AT_ONCE, k - start)
            unit = torch.zeros(count, padded_k, dtype=torch.bfloat16, device=weight.device)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            product = torch.ops.aten._weight_int4pack_mm(
                unit, weight.qdata, weight.block_size[1], weight.scale_and_zero
            )
            out[:, start : start + count] = product[:, :n].T
        return out

    def tolerance(self, weight: QuantizedWeight) -> Tensor:
        """One step of bfloat16, to which the kernel rounds every weight. A wrong code would be off by a whole scale."""
        return weight.dequantize().abs() * torch.finfo(torch.bfloat16).eps


def untile(qdata: Tensor) -> Tensor:
    """int32 [N/8, K/(32 I), 32, I] -> codes uint8 [N, K].

    Lane t of a tile of 8 rows holds row t // 4. A word has the codes of the even inputs in its lower four fields and of
    the odd ones in the upper four; field j of lane t is the input pair t % 4 + 4 * j of the word's 32 inputs.
    """
    tiles, steps, _, words = qdata.shape
    fields = unpack_words(qdata, 4).view(tiles, steps, ROWS_OF_TILE, LANES_OF_ROW, words, 2, 4)
    # tile, step, row, lane, word, odd, field -> tile, row, step, word, field, lane, odd
    codes = fields.permute(0, 2, 1, 4, 6, 3, 5)
    return codes.reshape(tiles * ROWS_OF_TILE, steps * words * COLUMNS_OF_WORD)
