"""A fixed count of entries (top-k) on the CPU against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zigpass.runtime import ZigpassError, reference

linear = torch.ops.zigpass.linear.default
qkv = torch.ops.zigpass.qkv.default
gated_mlp = torch.ops.zigpass.gated_mlp.default


def count(kept: int) -> torch.Tensor:
    return torch.tensor([kept], dtype=torch.int32)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_same_entries_as_the_reference_whatever_the_ties(cpu: Any, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 200))
    packed = cpu.weight(0, 40, k)
    entry = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-42, 2.0, -2.0, 1e30, float("inf")])
    x = torch.tensor(data.draw(st.lists(entry, min_size=k, max_size=k)))
    kept = data.draw(st.integers(-1, k + 2))
    mask = reference.inactive(x, count(kept))
    assert int((~mask).sum()) == min(max(kept, 0), k)
    finite = torch.where(x.isinf(), 1e31, x)
    y = linear(finite, list(packed.tensors), None, count(kept), packed.layout.spec)
    masked = torch.where(mask, 0.0, finite)
    cpu.assert_close(y, masked @ cpu.unpacked(packed).T, packed, masked, None)


def test_a_count_of_all_entries_is_dense_bit_for_bit(cpu: Any) -> None:
    packed = cpu.weight(0, 300, 211)
    x = cpu.values(1, 1, 211)
    dense, full = (linear(x, list(packed.tensors), None, t, packed.layout.spec) for t in (None, count(211)))
    assert torch.equal(dense, full)


def test_nan_is_always_among_the_largest(cpu: Any) -> None:
    packed = cpu.weight(0, 20, 40)
    x = cpu.values(1, 40)
    x[17] = torch.nan
    assert linear(x, list(packed.tensors), None, count(1), packed.layout.spec).isnan().all()


def test_a_count_in_the_middle_of_a_gated_mlp(cpu: Any) -> None:
    gate, up, down = (cpu.weight(seed, n, k) for seed, n, k in ((0, 96, 64), (1, 96, 64), (2, 64, 96)))
    weights = [list(packed.tensors) for packed in (gate, up, down)]
    specs = [packed.layout.spec for packed in (gate, up, down)]
    args = (cpu.values(3, 1, 64), *weights, None, None, None, count(30), count(20), *specs, "silu")
    torch.testing.assert_close(gated_mlp(*args), reference.gated_mlp(*args), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_opcheck(cpu: Any, rows: int) -> None:
    packed = cpu.weight(0, 96, 64)
    weight, spec, x = list(packed.tensors), packed.layout.spec, cpu.values(1, rows, 64)
    torch.library.opcheck(linear, (x, weight, None, count(20), spec))
    torch.library.opcheck(qkv, (x, weight * 2, [None, None], count(20), [spec, spec]))
    down = cpu.weight(1, 64, 96)
    mlp = (x, weight, weight, list(down.tensors), None, None, None, count(20), count(30))
    torch.library.opcheck(gated_mlp, (*mlp, spec, spec, down.layout.spec, "silu"))


def test_several_counts_are_refused(cpu: Any) -> None:
    packed = cpu.weight(0, 20, 40)
    counts = torch.ones(40, dtype=torch.int32)
    with pytest.raises(ZigpassError, match="int32"):
        linear(cpu.values(1, 40), list(packed.tensors), None, counts, packed.layout.spec)
    with pytest.raises(ZigpassError, match="a count has one entry, got 40"):
        linear(cpu.values(1, 40).to("meta"), [t.to("meta") for t in packed.tensors], None, counts, packed.layout.spec)
