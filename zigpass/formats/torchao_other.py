"""torchao weights that zigpass does not take, with what to use instead."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .recognizer import Recognizer, Recovered
from .torchao_common import torchao_weight, weight_class

DEVICE_LAYOUT: Final = (
    "its codes lie in the order of a device kernel that cannot be read back here; quantize with IntxWeightOnlyConfig"
    "(weight_dtype=torch.int4), which gives plain codes"
)
REASONS: Final = {
    "Int4PreshuffledTensor": DEVICE_LAYOUT,
    "Int4PlainInt32Tensor": DEVICE_LAYOUT,
    "IntxOpaqueTensor": DEVICE_LAYOUT,
    "Float8Tensor": "its weights are float8, not integer codes",
    "NF4Tensor": "NF4 is a table of 16 values, not a scale and a zero; quantize with integer codes instead",
}


class TorchaoOther(Recognizer):
    """Every torchao weight that no recognizer before it in the list took."""

    name = "torchao, other tensors"
    kept = "nothing"
    exactness = "-"
    refused = "all: " + ", ".join(REASONS) + " and types not known here, each with its reason"

    def recognizes(self, module: nn.Module) -> bool:
        return torchao_weight(module) is not None

    def refusal(self, module: nn.Module) -> str:
        kind = str(weight_class(module))
        return f"{kind}: {REASONS.get(kind, 'this torchao tensor is not known to zigpass')}"

    def recover(self, module: nn.Module) -> Recovered:
        raise ZigpassError(self.refusal(module))

    def dequantize(self, module: nn.Module) -> Tensor:
        raise ZigpassError(self.refusal(module))
