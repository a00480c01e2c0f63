"""`ZigzagLinear`: what `quantize_` and `prepare` put in the place of a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from zigpass.runtime import PackedWeight, QuantizedWeight, ZigpassError, repack, unpack
from zigpass.runtime.layout import BLOCK_ROWS
from zigpass.runtime.reference import mask_inactive

from .sites import Site


class ZigzagLinear(nn.Module):
    """y = W x + b with W packed in the zigzag layout.

    The packed tensors are ordinary buffers: they are saved in the state dict, move with `.to(device)`, and enter a
    compiled graph as inputs, never as constants. Casting the model (`.half()`, `.to(torch.bfloat16)`) leaves them as
    they are; the output follows the dtype of the input.

    Args:
        packed: the weight.
        bias: [N] or None; kept in its dtype.
        site: the activation it reads; linears that share an input share the object. None for a linear that is never
            sparse, such as an output head.

    Raises:
        ZigpassError: the site is for another number of features.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    perm: Tensor | None
    bias: Tensor | None

    def __init__(self, packed: PackedWeight, bias: Tensor | None, site: Site | None) -> None:
        super().__init__()
        if site is not None and site.features != packed.layout.k:
            raise ZigpassError(f"site {site.name} has {site.features} features, the weight has K={packed.layout.k}")
        self.in_features = packed.layout.k
        self.out_features = packed.layout.n
        self._hold(packed)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.site = site

    @property
    def weight_tensors(self) -> list[Tensor]:
        """The packed tensors in the order the ops take them."""
        tensors = (self.codes, self.scale, self.zero, self.perm)
        return [tensor for tensor in tensors if tensor is not None]

    @property
    def packed(self) -> PackedWeight:
        return PackedWeight(self.layout, tuple(self.weight_tensors))

    def repack_(self, band: int | None) -> None:
        """Hold the same weight in bands of another size; None is one band of all rows."""
        self._hold(repack(self.packed, band))

    def _hold(self, packed: PackedWeight) -> None:
        self.layout = packed.layout
        self.layout_spec = packed.layout.spec
        codes, scale, zero, perm = (*packed.tensors, None, None)[:4]
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("perm", perm)

    def unpack(self) -> QuantizedWeight:
        """Codes and scales, unpacked; `.dequantize()` of it is the float32 weight."""
        return unpack(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        threshold = None if self.site is None else self.site.threshold
        if self.site is not None and self.site.mask_rows:
            x = mask_inactive(x, threshold)
        out: Tensor = torch.ops.zigpass.linear.default(x, self.weight_tensors, self.bias, threshold, self.layout_spec)
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ZigzagLinear:
        """Follow device moves but not dtype casts: scales in another dtype would be other weights."""
        super()._apply(_keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.layout_spec}"


def _keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return apply


def find_linears(model: nn.Module) -> Iterator[tuple[str, ZigzagLinear]]:
    """All packed linears of a model with their qualified names."""
    for name, module in model.named_modules():
        if isinstance(module, ZigzagLinear):
            yield name, module


def repack_(model: nn.Module, band: int | None) -> nn.Module:
    """Repack every packed linear of a model in bands of another size, in place.

    One band of all rows (None) is best on CPUs and as fast as bands of 1024 on an H200; the paper has 256. The numbers
    stay the same bit for bit; a model that is compiled already is compiled again.

    Raises:
        ZigpassError: band is not a positive multiple of 128; nothing is changed then.
    """
    if band is not None and (band <= 0 or band % BLOCK_ROWS):
        raise ZigpassError(f"band must be a positive multiple of {BLOCK_ROWS} or None, got {band}")
    for _, linear in find_linears(model):
        linear.repack_(band)
    return model
