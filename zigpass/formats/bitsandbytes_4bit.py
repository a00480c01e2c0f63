"""bitsandbytes: recognized, so that a user is told why it is not taken."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .recognizer import Recognizer, Recovered

REASONS: Final = {
    "Params4bit": (
        "bitsandbytes NF4 and FP4 codes stand for a table of 16 values, and zigpass kernels compute scale * code + zero"
        "; start from the float checkpoint with zigpass.quantize_, or from a GPTQ, AWQ or HQQ one"
    ),
    "Int8Params": (
        "bitsandbytes int8 quantizes activations too and keeps outlier columns apart; start from the float checkpoint"
        " with zigpass.quantize_(model, ZigzagConfig(bits=8))"
    ),
}


class BitsAndBytes(Recognizer):
    name = "bitsandbytes"
    kept = "nothing"
    exactness = "-"
    refused = "NF4, FP4 (16-entry tables, not scale and zero) and LLM.int8 (activations quantized, outlier columns)"

    def recognizes(self, module: nn.Module) -> bool:
        return _weight_class(module) in REASONS

    def refusal(self, module: nn.Module) -> str:
        return REASONS[_weight_class(module)]

    def recover(self, module: nn.Module) -> Recovered:
        raise ZigpassError(self.refusal(module))

    def dequantize(self, module: nn.Module) -> Tensor:
        raise ZigpassError(self.refusal(module))


def _weight_class(module: nn.Module) -> str:
    return type(module._parameters.get("weight")).__name__
