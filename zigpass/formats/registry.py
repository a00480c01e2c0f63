"""The recognizers of quantized linears, in the order in which they are asked."""

from __future__ import annotations

from typing import Final

from torch import nn

from .awq import Awq
from .bitsandbytes_4bit import BitsAndBytes
from .compressed_tensors_packed import CompressedTensorsPacked
from .dequantize_call import DequantizeCall
from .gptq import Gptq
from .hqq import Hqq
from .recognizer import Recognizer
from .torchao_int4_opaque import TorchaoInt4Opaque
from .torchao_int4_plain import TorchaoInt4Plain
from .torchao_int4_tiled import TorchaoInt4Tiled
from .torchao_int8 import TorchaoInt8
from .torchao_intx import TorchaoIntx
from .torchao_other import TorchaoOther

RECOGNIZERS: Final[list[Recognizer]] = [
    TorchaoIntx(),
    TorchaoInt8(),
    TorchaoInt4Opaque(),
    TorchaoInt4Plain(),
    TorchaoInt4Tiled(),
    TorchaoOther(),  # after the torchao tensors that are taken
    DequantizeCall(),
    CompressedTensorsPacked(),
    Awq(),  # before GPTQ: both have qweight, qzeros and scales
    Gptq(),
    Hqq(),
    BitsAndBytes(),
]
"""Adding a representation is a file with a `Recognizer` and a line here."""


def find_recognizer(module: nn.Module) -> Recognizer | None:
    """The first recognizer that knows the module."""
    return next((recognizer for recognizer in RECOGNIZERS if recognizer.recognizes(module)), None)
