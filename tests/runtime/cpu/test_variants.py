"""Every variant of the kernels against the reference, the choice between them, and int8 activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from zigpass.runtime import ZigpassError, reference
from zigpass.runtime.cpu import set_activation_dtype
from zigpass.runtime.cpu.variants import AVX2, PORTABLE, VARIANTS, available_variants, current_variant, set_variant

linear, gated_mlp = torch.ops.zigpass.linear.default, torch.ops.zigpass.gated_mlp.default
KINDS = ("sub_int", "sub_float", "add_float", "column")


@pytest.fixture(autouse=True)
def default_again() -> Iterator[None]:
    yield
    set_variant(None)
    set_activation_dtype("float32")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    if request.param not in available_variants():
        pytest.skip(f"this CPU cannot run {request.param}")
    set_variant(request.param)
    return str(request.param)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("rows", [1, 2, 9, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_equals_the_reference(cpu: Any, bits: int, kind: str, rows: int) -> None:
    for n, k, band in ((300, 211, None), (700, 90, 384), (128, 64, None)):
        packed = cpu.weight(1, n, k, bits=bits, zero_kind=kind, band=band)
        x = cpu.values(2, rows, k)
        args = (x, list(packed.tensors), cpu.values(3, n), torch.tensor([0.5]), packed.layout.spec)
        cpu.assert_close(linear(*args), reference.linear(*args), packed, x, args[2])


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
def test_infinite_inputs_do_what_the_reference_does(cpu: Any, kind: str, special: float) -> None:
    packed = cpu.weight(4, 200, 100, zero_kind=kind)
    x = cpu.values(5, 1, 100)
    x[0, 31] = special
    for threshold in (None, torch.tensor([0.5])):
        args = (x, list(packed.tensors), None, threshold, packed.layout.spec)
        torch.testing.assert_close(linear(*args), reference.linear(*args), equal_nan=True)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e20, 1e32])
def test_extreme_magnitudes(cpu: Any, scale: float) -> None:
    packed = cpu.weight(6, 200, 100)
    args = (cpu.values(7, 1, 100) * scale, list(packed.tensors), None, None, packed.layout.spec)
    expected = reference.linear(*args)
    # 1e-42 is a few steps of subnormal floats.
    torch.testing.assert_close(linear(*args), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-42)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("kind", ["sub_int", "column"])
def test_a_row_among_others_has_the_bits_it_has_alone(cpu: Any, kind: str) -> None:
    packed = cpu.weight(8, 700, 300, zero_kind=kind)
    x = cpu.values(9, current_variant().most_rows, 300)
    weight, spec = list(packed.tensors), packed.layout.spec
    together = linear(x, weight, None, None, spec)
    for row, y in zip(x, together, strict=True):
        assert torch.equal(linear(row[None], weight, None, None, spec)[0], y)


def test_one_large_input_does_not_drown_the_others(cpu: Any) -> None:
    # Massive activations: an entry a thousand times its neighbours, in the same group.
    packed = cpu.weight(10, 300, 128, group_size=128)
    x = cpu.values(11, 1, 128)
    x[0, 7] = 1000.0
    args = (x, list(packed.tensors), None, None, packed.layout.spec)
    exact = x.double() @ cpu.unpacked(packed).double().T
    ours, theirs = (float((f(*args) - exact).abs().max()) for f in (linear, reference.linear))
    assert ours <= 3 * theirs


@pytest.mark.parametrize("kind", ["sub_int", "column"])
def test_int8_activations_are_off_by_percents(cpu: Any, kind: str, variant: str) -> None:
    if variant == PORTABLE:
        pytest.skip("its kernels multiply floats")
    packed = cpu.weight(12, 700, 1000, zero_kind=kind, group_size=128)
    args = (cpu.values(13, 1, 1000), list(packed.tensors), None, torch.tensor([0.5]), packed.layout.spec)
    expected = reference.linear(*args)
    set_activation_dtype("int8")
    error = float((linear(*args) - expected).norm() / expected.norm())
    assert 1e-4 < error < 0.03


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["sub_int", "column"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_integer_kernels_agree_bit_for_bit(cpu: Any, bits: int, kind: str, dtype: Any) -> None:
    integer = [name for name in available_variants() if name != PORTABLE]
    if len(integer) < 2:
        pytest.skip("this CPU has only one variant of the integer kernels")
    # Codes and inputs as large as they can be: 16-bit sums come closest to their end.
    packed = cpu.weight(14, 300, 160, bits=bits, zero_kind=kind, group_size=128)
    packed.tensors[0].fill_(-1)
    x = torch.full((1, 160), 1.0)
    x[0, ::7] = -1.0
    set_activation_dtype(dtype)
    results = []
    for name in integer:
        set_variant(name)
        results.append([
            linear(rows, list(packed.tensors), None, None, packed.layout.spec) for rows in (x, cpu.values(15, 1, 160))
        ])  # fmt: skip
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZigpassError, match="'float16'"):
        set_activation_dtype("float16")  # type: ignore[arg-type]
    with pytest.raises(ZigpassError, match=r"'sse9' is an unknown variant; available here: .*portable"):
        set_variant("sse9")
    monkeypatch.setenv("ZIGPASS_CPU_VARIANT", PORTABLE)
    set_variant(None)
    assert current_variant().name == PORTABLE


def test_a_variant_that_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from zigpass.runtime.cpu import variants

    monkeypatch.setattr(variants, "target_features", lambda: frozenset({"avx2", "fma", "f16c"}))
    assert available_variants() == (AVX2, PORTABLE)
    monkeypatch.setattr(variants, "target_features", lambda: frozenset({"avx2"}))
    assert available_variants() == (PORTABLE,)
    with pytest.raises(ZigpassError, match="not something that this CPU can run"):
        set_variant(VARIANTS[0])
