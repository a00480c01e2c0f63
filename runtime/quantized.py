"""Quantized weights before packing: plain codes and scales, and what they mean.

`QuantizedWeight` is the meeting point of everything: quantizers and format readers produce it, `pack` lays it out,
`dequantize` says which real numbers it stands for.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .errors import ZigpassError
from .layout import COLUMN_BLOCK, COLUMN_SUPERBLOCK, SUPPORTED_BITS, Layout, ScaleAxis, ZeroKind

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclasses.dataclass(frozen=True)
class GroupScales:
    """A scale and a zero per (row, group of inputs): scale_axis "in".

    Attributes:
        scale: float16, bfloat16 or float32 [N, G], G = ceil(K / group_size).
        zero: [N, G]; uint8 for "sub_int", else a float dtype.
        zero_kind: "sub_int" and "sub_float" mean scale * (code - zero), "add_float" means scale * code + zero.
        group_size: inputs that share a scale; the last group may be shorter.
    """

    scale: Tensor
    zero: Tensor
    zero_kind: ZeroKind
    group_size: int

    def apply(self, codes: Tensor) -> Tensor:
        """The real values of float32 codes [N, K]."""
        group = torch.arange(codes.shape[1], device=codes.device) // self.group_size
        scale, zero = self.scale.float()[:, group], self.zero.float()[:, group]
        return scale * codes + zero if self.zero_kind == "add_float" else scale * (codes - zero)

    def check(self, n: int, k: int) -> None:
        shape = (n, -(-k // self.group_size))
        if self.zero_kind not in ("sub_int", "sub_float", "add_float"):
            raise ZigpassError(f'scales along the inputs cannot have zero_kind "{self.zero_kind}"')
        for name, tensor in (("scale", self.scale), ("zero", self.zero)):
            if tuple(tensor.shape) != shape:
                raise ZigpassError(f"{name} has shape {tuple(tensor.shape)}, expected [N, groups] = {shape}")
        if self.scale.dtype not in FLOAT_DTYPES:
            raise ZigpassError(f"scale has dtype {self.scale.dtype}, expected one of {FLOAT_DTYPES}")
        if (self.zero.dtype != torch.uint8) if self.zero_kind == "sub_int" else (self.zero.dtype not in FLOAT_DTYPES):
            raise ZigpassError(f'zero has dtype {self.zero.dtype}, which zero_kind "{self.zero_kind}" does not allow')


@dataclasses.dataclass(frozen=True)
class ColumnScales:
    """The paper's scales, the Q4_K superblock turned by 90 degrees: scale_axis "out".

    A weight is d * scale6 * code - dmin * min6.

    Attributes:
        d, dmin: float16 [ceil(N / 256), K], per 256 rows of a column.
        scale6, min6: uint8 0..63 [ceil(N / 32), K], per 32 rows of a column.
    """

    d: Tensor
    dmin: Tensor
    scale6: Tensor
    min6: Tensor

    def apply(self, codes: Tensor) -> Tensor:
        """The real values of float32 codes [N, K]."""
        rows = torch.arange(codes.shape[0], device=codes.device)
        superblock, block = rows // COLUMN_SUPERBLOCK, rows // COLUMN_BLOCK
        scale = self.d.float()[superblock] * self.scale6.float()[block]
        return scale * codes - self.dmin.float()[superblock] * self.min6.float()[block]

    def check(self, n: int, k: int) -> None:
        for name, tensor, rows, dtype in (
            ("d", self.d, COLUMN_SUPERBLOCK, torch.float16),
            ("dmin", self.dmin, COLUMN_SUPERBLOCK, torch.float16),
            ("scale6", self.scale6, COLUMN_BLOCK, torch.uint8),
            ("min6", self.min6, COLUMN_BLOCK, torch.uint8),
        ):
            shape = (-(-n // rows), k)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ZigpassError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
            if dtype == torch.uint8 and int(tensor.max()) > 63:
                raise ZigpassError(f"{name} holds {int(tensor.max())}, which does not fit 6 bits")


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """Codes and scales of one weight, unpacked.

    Attributes:
        codes: uint8 [N, K], each below 2**bits.
        bits: 2, 4 or 8.
        scales: `GroupScales` or `ColumnScales`.
        perm: int32 [K] or None. Column p of the codes, and of the groups of the scales, belongs to input perm[p];
            None means input p.

    Raises:
        ZigpassError: shapes, dtypes or values do not fit together.
    """

    codes: Tensor
    bits: int
    scales: GroupScales | ColumnScales
    perm: Tensor | None = None

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS:
            raise ZigpassError(f"bits must be one of {SUPPORTED_BITS}, got {self.bits}")
        if self.codes.dim() != 2 or self.codes.dtype != torch.uint8 or not self.codes.numel():
            raise ZigpassError(
                f"codes must be a non-empty uint8 matrix, got {self.codes.dtype} {tuple(self.codes.shape)}"
            )
        if self.bits < 8 and int(self.codes.max()) >= 1 << self.bits:
            raise ZigpassError(f"codes hold {int(self.codes.max())}, which does not fit {self.bits} bits")
        self.scales.check(*self.codes.shape)
        if self.perm is not None:
            _check_permutation(self.perm, self.codes.shape[1])

    @property
    def scale_axis(self) -> ScaleAxis:
        return "in" if isinstance(self.scales, GroupScales) else "out"

    def layout(self, band: int | None = None) -> Layout:
        """The layout this weight packs into; `band` None means one band of all rows."""
        n, k = self.codes.shape
        group_scales = self.scales if isinstance(self.scales, GroupScales) else None
        return Layout(
            n=n,
            k=k,
            bits=self.bits,
            scale_axis=self.scale_axis,
            group_size=group_scales.group_size if group_scales else COLUMN_BLOCK,
            zero_kind=group_scales.zero_kind if group_scales else "column",
            band=-(-n // 128) * 128,
            permuted=self.perm is not None,
        ).with_band(band)

    def dequantize(self) -> Tensor:
        """The weight these codes stand for, float32 [N, K], columns in the order of the inputs."""
        columns = self.scales.apply(self.codes.float())
        if self.perm is None:
            return columns
        return torch.empty_like(columns).index_copy_(1, self.perm.long(), columns)


def _check_permutation(perm: Tensor, k: int) -> None:
    if perm.dtype != torch.int32 or tuple(perm.shape) != (k,):
        raise ZigpassError(f"perm is {perm.dtype} {tuple(perm.shape)}, expected torch.int32 {(k,)}")
    if not torch.equal(perm.sort().values, torch.arange(k, dtype=torch.int32, device=perm.device)):
        raise ZigpassError(f"perm does not hold every input 0..{k - 1} once")
