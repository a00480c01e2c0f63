"""Number formats and small enumerations as the kernels spell them (`common.cuh`)."""

from __future__ import annotations

from typing import Final

import torch

from ..layout import ZeroKind

F16: Final = 0
BF16: Final = 1
F32: Final = 2
U8: Final = 3
NONE: Final = 4

FORMATS: Final[dict[torch.dtype, int]] = {
    torch.float16: F16,
    torch.bfloat16: BF16,
    torch.float32: F32,
    torch.uint8: U8,
}
FORMAT_BYTES: Final = (2, 2, 4, 1)
ZERO_KIND_CODES: Final[dict[ZeroKind, int]] = {"sub_int": 0, "sub_float": 1, "add_float": 2, "column": 0}
ACTIVATION_CODES: Final = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
