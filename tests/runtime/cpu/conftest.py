"""Random packed weights, and how far a result may be from the reference."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from zigpass.runtime import ColumnScales, GroupScales, PackedWeight, QuantizedWeight, pack, unpack

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def random_weight(
    seed: int,
    n: int,
    k: int,
    bits: int = 4,
    zero_kind: str = "sub_int",
    group_size: int = 32,
    scale_dtype: torch.dtype = torch.float16,
    zero_dtype: torch.dtype = torch.float16,
    band: int | None = None,
) -> PackedWeight:
    """A packed weight with random codes and scales; zero_kind "column" has scales along the outputs."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (n, k), generator=g, dtype=torch.uint8)
    scales: GroupScales | ColumnScales
    if zero_kind == "column":
        coarse, fine = (-(-n // 256), k), (-(-n // 32), k)
        scales = ColumnScales(
            *((torch.rand(coarse, generator=g) * 1e-3).half() for _ in range(2)),
            *(torch.randint(0, 64, fine, generator=g, dtype=torch.uint8) for _ in range(2)),
        )
    else:
        shape = (n, -(-k // group_size))
        zero = torch.randint(0, 1 << bits, shape, generator=g, dtype=torch.uint8)
        if zero_kind != "sub_int":
            zero = (torch.randn(shape, generator=g) * 3).to(zero_dtype)
        scale = (torch.randn(shape, generator=g) * 0.02).to(scale_dtype)
        scales = GroupScales(scale, zero, zero_kind, group_size)  # type: ignore[arg-type]
    return pack(QuantizedWeight(codes, bits, scales), band)


def magnitude(packed: PackedWeight) -> Tensor:
    """float64 [N, K]: the sum of the magnitudes that a weight is made of, which bounds rounding errors."""
    weight = unpack(packed)
    scales, codes = weight.scales, weight.codes.double()
    if isinstance(scales, ColumnScales):
        rows = torch.arange(codes.shape[0])
        scale = scales.d.double()[rows // 256] * scales.scale6.double()[rows // 32]
        return scale * codes + scales.dmin.double()[rows // 256] * scales.min6.double()[rows // 32]
    group = torch.arange(codes.shape[1]) // scales.group_size
    scale, zero = scales.scale.double().abs()[:, group], scales.zero.double().abs()[:, group]
    return scale * codes + zero if scales.zero_kind == "add_float" else scale * (codes + zero)


def assert_close(actual: Tensor, expected: Tensor, packed: PackedWeight, x: Tensor, bias: Tensor | None) -> None:
    """|actual - expected| <= 1e-5 * (|W| |x| + |bias|) + one rounding of the dtype."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.is_contiguous()
    size = x.double().abs() @ magnitude(packed).T + (0 if bias is None else bias.double().abs())
    finfo = torch.finfo(actual.dtype)
    rounding = 0 if actual.dtype == torch.float32 else finfo.eps
    error = (actual.double() - expected.double()).abs()
    bound = 1e-5 * size + rounding * expected.double().abs() + finfo.smallest_normal
    assert bool((error <= bound).all()), f"error is up to {float((error / bound).max()):.2f} times the bound"


@st.composite
def weights(draw: Callable[..., Any], n: int | None = None, k: int | None = None) -> PackedWeight:
    """Any packed weight: odd sizes, all bits, axes, zero kinds, dtypes, group sizes and bands."""
    n = n or draw(st.integers(1, 600))
    k = k or draw(st.integers(1, 300))
    padded = -(-n // 128) * 128
    return random_weight(
        draw(st.integers(0, 2**32)),
        n,
        k,
        bits=draw(st.sampled_from([2, 4, 8])),
        zero_kind=draw(st.sampled_from(["sub_int", "sub_float", "add_float", "column"])),
        group_size=draw(st.sampled_from([16, 32, 64, 128, 7])),
        scale_dtype=draw(st.sampled_from(FLOATS)),
        zero_dtype=draw(st.sampled_from(FLOATS)),
        band=draw(st.sampled_from([None, *range(128, padded + 1, 128)])),
    )


@st.composite
def thresholds(draw: Callable[..., Any], k: int) -> Tensor | None:
    """None, zero, one number, one per channel, one that nothing reaches, or a count of entries."""
    kind = draw(st.sampled_from(["none", "zero", "scalar", "channel", "infinity", "count"]))
    if kind == "count":
        return torch.tensor([draw(st.integers(0, k + 2))], dtype=torch.int32)
    if kind == "channel":
        g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        return torch.rand(k, generator=g) * 1.5
    values = {
        "none": None,
        "zero": torch.zeros(1),
        "scalar": torch.tensor([0.7]),
        "infinity": torch.tensor([torch.inf]),
    }
    return values[kind]


def random_values(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(scope="session")
def cpu() -> SimpleNamespace:
    """The functions above, for tests that cannot import this file."""
    return SimpleNamespace(
        weight=random_weight,
        weights=weights,
        thresholds=thresholds,
        values=random_values,
        assert_close=assert_close,
        unpacked=lambda packed: unpack(packed).dequantize(),
    )
