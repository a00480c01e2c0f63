"""`gated_mlp` on the CPU against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zigpass.runtime import ZigpassError, reference

gated_mlp = torch.ops.zigpass.gated_mlp.default
ACTIVATIONS = sorted(reference.ACTIVATIONS)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Relative to the largest entry: 2e-5, or the rounding of a low-precision dtype. Infinities are the same ones."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    finite = expected.isfinite()  # float16 results can be larger than float16 holds
    assert torch.equal(actual[~finite], expected[~finite])
    actual, expected = actual[finite], expected[finite]
    if expected.numel():
        tolerance = 2e-5 + (0 if actual.dtype == torch.float32 else torch.finfo(actual.dtype).eps)
        error = (actual.float() - expected.float()).abs().max()
        assert float(error) <= tolerance * float(expected.float().abs().max())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_the_reference(cpu: Any, data: st.DataObject) -> None:
    k, middle, n = (data.draw(st.integers(1, 300)) for _ in range(3))
    up, gate = (data.draw(cpu.weights(n=middle, k=k)) for _ in range(2))
    down = data.draw(cpu.weights(n=n, k=middle))
    gated, biased = data.draw(st.booleans()), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    rows = data.draw(st.sampled_from([1, 1, 1, 0, 3]))
    # A middle entry within rounding of its threshold may fall on either side; keep the middle dense or empty here.
    threshold_mid = data.draw(st.sampled_from([None, torch.zeros(middle), torch.tensor([torch.inf])]))
    args = (
        cpu.values(1, rows, k, dtype=dtype),
        list(gate.tensors) if gated else [],
        list(up.tensors),
        list(down.tensors),
        cpu.values(2, middle) if gated and biased else None,
        cpu.values(3, middle) if biased else None,
        cpu.values(4, n) if biased else None,
        data.draw(cpu.thresholds(k)),
        threshold_mid,
        gate.layout.spec if gated else "",
        up.layout.spec,
        down.layout.spec,
        data.draw(st.sampled_from(ACTIVATIONS)),
    )
    y = gated_mlp(*args)
    assert_near(y, reference.gated_mlp(*args))
    assert torch.equal(y, gated_mlp(*args)), "a second run gave other bits"


def make_args(cpu: Any, rows: int, activation: str, middle: float | None = None) -> tuple[Any, ...]:
    gate, up, down = cpu.weight(0, 200, 96), cpu.weight(1, 200, 96), cpu.weight(2, 96, 200)
    return (
        cpu.values(3, rows, 96),
        list(gate.tensors),
        list(up.tensors),
        list(down.tensors),
        *(None, None, None),
        torch.tensor([0.3]),
        None if middle is None else torch.tensor([middle]),
        *(packed.layout.spec for packed in (gate, up, down)),
        activation,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_threshold_on_the_middle(cpu: Any, activation: str) -> None:
    args = make_args(cpu, 1, activation, 0.05)
    assert_near(gated_mlp(*args), reference.gated_mlp(*args))
    assert not torch.equal(gated_mlp(*args), gated_mlp(*make_args(cpu, 1, activation)))


def test_threshold_zero_is_dense_bit_for_bit(cpu: Any) -> None:
    assert torch.equal(gated_mlp(*make_args(cpu, 1, "silu", 0.0)), gated_mlp(*make_args(cpu, 1, "silu")))


def test_nan_propagates(cpu: Any) -> None:
    x, *rest = make_args(cpu, 1, "silu", 0.05)
    x[0, 5] = torch.nan
    assert bool(gated_mlp(x, *rest).isnan().all())


@pytest.mark.parametrize("rows", [1, 2])
def test_opcheck(cpu: Any, rows: int) -> None:
    torch.library.opcheck(gated_mlp, make_args(cpu, rows, "silu", 0.05))


def test_arguments_that_do_not_fit_are_refused(cpu: Any) -> None:
    args = list(make_args(cpu, 1, "swish"))
    with pytest.raises(ZigpassError, match="unknown activation 'swish'"):
        gated_mlp(*args)
    args[-1] = "silu"
    other = cpu.weight(4, 100, 96)
    with pytest.raises(ZigpassError, match="different row counts"):
        gated_mlp(args[0], list(other.tensors), *args[2:9], other.layout.spec, *args[10:])
    with pytest.raises(ZigpassError, match="has 200 features"):
        gated_mlp(*args[:3], list(other.tensors), *args[4:11], other.layout.spec, "silu")
