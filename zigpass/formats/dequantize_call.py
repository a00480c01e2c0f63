"""Weights that a graph dequantizes with `torchao.dequantize_affine` or the PT2E ops of `quantized_decomposed`."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import torch
from torch import Tensor, nn

from .affine import affine_weight
from .dequantized_linear import DequantizedLinear
from .recognizer import Recognizer, Recovered

CODE_DTYPES: Final = (torch.int8, torch.uint8)
MAX_BITS: Final = 8


class DequantizeCall(Recognizer):
    name = "QDQ graph (torchao.dequantize_affine, quantized_decomposed)"
    kept = "integer codes of at most 8 bits, scale per group, row or tensor, integer zeros"
    exactness = "the graph's own dequantize call, in its dtype, bit for bit"
    refused = "quantized inputs, codes that the graph computes, scales per input (axis=1), other code dtypes"

    def recognizes(self, module: nn.Module) -> bool:
        return isinstance(module, DequantizedLinear)

    def refusal(self, module: nn.Module) -> str | None:
        affine = _read(module)
        if affine.codes.dtype not in CODE_DTYPES or affine.bits > MAX_BITS:
            return (
                f"its codes are {affine.codes.dtype} from {affine.low} to {affine.high}; supported are int8 and uint8"
                f" of at most {MAX_BITS} bits"
            )
        n, k = affine.codes.shape
        rows, inputs = affine.block
        if inputs == 1 < k:
            return "its scales belong to single inputs (axis=1); quantize along the outputs or in groups of inputs"
        if affine.scale.numel() != -(-n // rows) * -(-k // inputs):
            return f"it has {affine.scale.numel()} scales for blocks of {rows} x {inputs} in a {n} x {k} weight"
        return None

    def recover(self, module: nn.Module) -> Recovered:
        affine = _read(module)
        weight = affine_weight(affine.codes, affine.scale, affine.zero, affine.block, affine.low, affine.bits)
        return Recovered(weight, module.bias)  # type: ignore[arg-type]  # a tensor or None

    def dequantize(self, module: nn.Module) -> Tensor:
        assert isinstance(module, DequantizedLinear)
        return module.dequantize()


@dataclasses.dataclass(frozen=True)
class _Affine:
    """scale * (code - zero), one scale and zero per block of (rows, inputs); codes from low to high."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    block: tuple[int, int]
    low: int
    high: int

    @property
    def bits(self) -> int:
        return (self.high - self.low).bit_length()


def _read(module: nn.Module) -> _Affine:
    """What the arguments of any of the calls say, in one form."""
    assert isinstance(module, DequantizedLinear)
    given = module.arguments
    codes: Tensor = given["input"]
    n, k = codes.shape
    name = module.op._schema.name
    if name.endswith("per_tensor"):
        block = (n, k)
    elif name.endswith("per_channel"):
        block = (1, k) if given["axis"] in (0, -2) else (n, 1)
    elif name.endswith("per_channel_group"):
        block = (1, given["group_size"])
    else:
        rows, inputs = given["block_size"]
        block = (rows, inputs)
    scale = _tensor(given.get("scales", given.get("scale")), torch.float32, codes)
    zero = _tensor(given.get("zero_points", given.get("zero_point")), torch.int64, codes)
    assert scale is not None
    limits = torch.iinfo(codes.dtype)
    low, high = (given.get(f"quant_{end}") for end in ("min", "max"))
    return _Affine(
        codes,
        scale.float() if scale.dtype == torch.float64 else scale,
        zero,
        block,
        int(limits.min if low is None else low),
        int(limits.max if high is None else high),
    )


def _tensor(value: Any, dtype: torch.dtype, like: Tensor) -> Tensor | None:
    """A parameter of the call, which may be a plain number."""
    return (
        value if value is None or isinstance(value, Tensor) else torch.tensor([value], dtype=dtype, device=like.device)
    )
