"""HQQ: `HQQLinear` with `W_q` and a dictionary `meta`.

With axis=1 the weight [N, K], cut into runs of `group_size` inputs, is scale * (code - zero) with a float zero per run.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.runtime import GroupScales, QuantizedWeight, ZigpassError

from .bits import stored_bits
from .recognizer import Recognizer, Recovered

BITS_OF_PACKING: Final = {"8bit_u8": 8, "4bit_u8": 4, "2bit_u8": 2, "1bit_u8": 1}


class Hqq(Recognizer):
    name = "HQQ (axis=1)"
    kept = "codes of 1, 2, 4 or 8 bits, scale and float zero in the compute dtype"
    exactness = (
        "HQQ's arithmetic on the recovered codes, bit for bit; HQQ rounds (code - zero) to the compute dtype, zigpass"
        " computes in float32"
    )
    refused = "axis=0 (groups run across outputs), 3-bit codes, quantized scales or zeros"

    def recognizes(self, module: nn.Module) -> bool:
        return isinstance(getattr(module, "W_q", None), Tensor) and isinstance(getattr(module, "meta", None), dict)

    def refusal(self, module: nn.Module) -> str | None:
        meta = _meta(module)
        if meta["axis"] != 1:
            return (
                "its groups run across the outputs (axis=0), so that one input has another scale in every few rows;"
                " quantize with axis=1"
            )
        if meta["packing"] not in BITS_OF_PACKING:
            return f"its packing is {meta['packing']}; supported are {', '.join(BITS_OF_PACKING)}"
        if meta.get("quant_scale") or meta.get("quant_zero"):
            return "its scales or zeros are quantized themselves; quantize with quant_scale=False, quant_zero=False"
        if "zero_scale" in meta:
            return "its scales are offloaded (offload_meta); quantize with offload_meta=False"
        return None

    def recover(self, module: nn.Module) -> Recovered:
        source, meta = _source(module), _meta(module)
        n, k = meta["shape"]
        group_size = meta["group_size"] or k
        if k % group_size:
            raise ZigpassError(f"{self.name}: group_size {group_size} does not divide K={k}")
        bits = BITS_OF_PACKING[meta["packing"]]
        packed = source.W_q.view(torch.uint8) if meta.get("view_as_float") else source.W_q
        codes = _unpack(packed.detach(), bits).reshape(n, k)
        scale, zero = (meta[part].reshape(n, k // group_size) for part in ("scale", "zero"))
        scales = GroupScales(scale, zero, "sub_float", group_size)
        return Recovered(QuantizedWeight(codes, stored_bits(bits), scales), source.bias)

    def dequantize(self, module: nn.Module) -> Tensor:
        with torch.no_grad():
            own: Tensor = _source(module).dequantize()
        return own

    def rounded(self, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        scales = weight.scales
        assert isinstance(scales, GroupScales)
        group = torch.arange(weight.codes.shape[1], device=weight.codes.device) // scales.group_size
        return (weight.codes.to(dtype) - scales.zero[:, group]) * scales.scale[:, group]


def _source(module: nn.Module) -> Any:
    return module


def _meta(module: nn.Module) -> dict[str, Any]:
    meta: dict[str, Any] = _source(module).meta
    return meta


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [R, C] -> uint8 [R * 8 / bits, C]: the highest bits are the first part of the rows."""
    mask = (1 << bits) - 1
    return torch.cat([(packed >> shift) & mask for shift in range(8 - bits, -1, -bits)])
