"""`linear` on the CPU against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zigpass.runtime import ZigpassError, reference

linear = torch.ops.zigpass.linear.default
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
THOROUGH = settings(max_examples=120, deadline=None, derandomize=True)


@THOROUGH
@given(data=st.data())
def test_one_row_equals_the_reference(cpu: Any, data: st.DataObject) -> None:
    packed = data.draw(cpu.weights())
    n, k = packed.layout.n, packed.layout.k
    seed = data.draw(st.integers(0, 2**32))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = cpu.values(seed, *data.draw(st.sampled_from([(k,), (1, k), (1, 1, k)])), dtype=dtype)
    bias = data.draw(st.sampled_from([None, *DTYPES]))
    bias = None if bias is None else cpu.values(seed + 1, n, dtype=bias)
    threshold = data.draw(cpu.thresholds(k))

    args = (x, list(packed.tensors), bias, threshold, packed.layout.spec)
    y = linear(*args)
    cpu.assert_close(y, reference.linear(*args), packed, x, bias)
    assert torch.equal(y, linear(*args)), "a second run gave other bits"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_several_rows_run_dense(cpu: Any, data: st.DataObject) -> None:
    packed = data.draw(cpu.weights())
    n, k = packed.layout.n, packed.layout.k
    dtype = data.draw(st.sampled_from(DTYPES))
    x = cpu.values(3, *data.draw(st.sampled_from([(0, k), (2, k), (1, 5, k), (2, 0, k), (40, k)])), dtype=dtype)
    bias = cpu.values(4, n) if data.draw(st.booleans()) else None
    weight, spec = list(packed.tensors), packed.layout.spec
    y = linear(x, weight, bias, torch.tensor([torch.inf]), spec)
    cpu.assert_close(y, reference.linear(x, weight, bias, None, spec), packed, x, bias)


@pytest.mark.parametrize("zero_kind", ["sub_int", "sub_float", "add_float", "column"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_threshold_zero_is_dense_bit_for_bit(cpu: Any, zero_kind: str, bits: int) -> None:
    packed = cpu.weight(0, 300, 211, bits=bits, zero_kind=zero_kind)
    x = cpu.values(1, 1, 211)
    dense, *others = (
        linear(x, list(packed.tensors), None, threshold, packed.layout.spec)
        for threshold in (None, torch.zeros(1), torch.zeros(211))
    )
    assert all(torch.equal(dense, other) for other in others)


@pytest.mark.parametrize("zero_kind", ["sub_int", "column"])
@pytest.mark.parametrize("bias", [False, True])
def test_nothing_active_gives_the_bias(cpu: Any, zero_kind: str, bias: bool) -> None:
    packed = cpu.weight(0, 130, 64, zero_kind=zero_kind)
    b = cpu.values(1, 130) if bias else None
    y = linear(cpu.values(2, 1, 64), list(packed.tensors), b, torch.tensor([100.0]), packed.layout.spec)
    assert torch.equal(y, torch.zeros(1, 130) if b is None else b[None])


@pytest.mark.parametrize("band", [128, 256, 384, None])
@pytest.mark.parametrize("zero_kind", ["sub_int", "column"])
def test_the_band_changes_no_bit(cpu: Any, zero_kind: str, band: int | None) -> None:
    whole, banded = (cpu.weight(5, 700, 90, zero_kind=zero_kind, band=b) for b in (None, band))
    x, threshold = cpu.values(6, 1, 90), torch.tensor([0.5])
    y, z = (linear(x, list(p.tensors), None, threshold, p.layout.spec) for p in (whole, banded))
    assert torch.equal(y, z)


@pytest.mark.parametrize("zero_kind", ["sub_int", "add_float", "column"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_are_active_and_propagate(cpu: Any, zero_kind: str, special: float) -> None:
    packed = cpu.weight(7, 200, 100, zero_kind=zero_kind)
    x = cpu.values(8, 1, 100)
    x[0, 31] = special
    y = linear(x, list(packed.tensors), None, torch.tensor([0.5]), packed.layout.spec)
    assert not bool(y.isfinite().any())
    if special != special:
        assert bool(y.isnan().all())


def test_a_nan_threshold_keeps_everything(cpu: Any) -> None:
    packed = cpu.weight(7, 200, 100)
    x = cpu.values(8, 1, 100)
    args = (list(packed.tensors), None)
    kept = linear(x, *args, torch.full((100,), torch.nan), packed.layout.spec)
    assert torch.equal(kept, linear(x, *args, None, packed.layout.spec))


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_entries_count(cpu: Any, dtype: torch.dtype) -> None:
    packed = cpu.weight(9, 200, 100, zero_kind="add_float", scale_dtype=torch.float32)
    x = (cpu.values(10, 1, 100) * torch.finfo(dtype).smallest_normal * 0.3).to(dtype)
    weight, spec = list(packed.tensors), packed.layout.spec
    y, expected = (
        f(x.float() if dtype != torch.float32 else x, weight, None, None, spec) for f in (linear, reference.linear)
    )
    cpu.assert_close(y, expected, packed, x, None)
    same = linear(x, weight, None, None, spec)
    assert torch.equal(same, y.to(dtype))
    assert bool((y != 0).any())


def test_subnormal_scales_count(cpu: Any) -> None:
    packed = cpu.weight(11, 130, 64)
    codes, scale, zero = packed.tensors
    weight = [codes, (torch.rand(scale.shape) * 5e-5).half(), zero]
    x = cpu.values(12, 1, 64)
    args = (x, weight, None, None, packed.layout.spec)
    torch.testing.assert_close(linear(*args), reference.linear(*args), rtol=1e-4, atol=1e-7)


def test_strided_input(cpu: Any) -> None:
    packed = cpu.weight(13, 140, 70)
    wide = cpu.values(14, 3, 140)
    weight, spec = list(packed.tensors), packed.layout.spec
    for x in (wide[:1, ::2], wide[:, ::2], wide.t()[:70].t(), wide[1, 70:]):
        y = linear(x, weight, None, torch.tensor([0.3]), spec)
        assert torch.equal(y, linear(x.contiguous(), weight, None, torch.tensor([0.3]), spec))


def test_a_piece_of_rows_is_bounded_and_the_pieces_join(cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from zigpass.runtime.cpu import rows

    monkeypatch.setattr(rows, "PIECE_BYTES", 1)
    packed = cpu.weight(15, 700, 90, band=384)
    x = cpu.values(16, 40, 90)
    args = (x, list(packed.tensors), None, None, packed.layout.spec)
    cpu.assert_close(linear(*args), reference.linear(*args), packed, x, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_opcheck(cpu: Any, dtype: torch.dtype, rows: int) -> None:
    packed = cpu.weight(17, 130, 64)
    x = cpu.values(18, rows, 64, dtype=dtype)
    torch.library.opcheck(linear, (x, list(packed.tensors), None, torch.tensor([0.5]), packed.layout.spec))


def test_arguments_that_do_not_fit_are_refused(cpu: Any) -> None:
    packed = cpu.weight(19, 130, 64)
    codes, scale, zero = packed.tensors
    spec, x = packed.layout.spec, cpu.values(20, 1, 64)
    good = [codes, scale, zero]
    for args, message in (
        ((x.double(), good, None, None, spec), "float64"),
        ((x[:, :63], good, None, None, spec), "63 features"),
        ((x, good[:2], None, None, spec), "3 tensors"),
        ((x, [codes.float(), scale, zero], None, None, spec), "codes .* dtype torch.float32"),
        ((x, [codes[:-1], scale, zero], None, None, spec), "codes .* shape"),
        ((x, [codes, scale, zero.repeat_interleave(2)[::2]], None, None, spec), "zero .* strides"),
        ((x, [codes, scale, zero.half()], None, None, spec), "zero .* dtype torch.float16"),
        ((x, good, torch.zeros(129), None, spec), "bias"),
        ((x, good, torch.zeros(130, dtype=torch.float64), None, spec), "bias"),
        ((x, good, None, torch.zeros(2), spec), "threshold has 2 entries"),
        ((x, good, None, torch.zeros(1, dtype=torch.float64), spec), "threshold"),
    ):
        with pytest.raises(ZigpassError, match=message):
            linear(*args)
