"""Weights with permuted columns (act-order) on the CPU against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zigpass.runtime import PackedWeight, QuantizedWeight, ZigpassError, pack, reference, unpack

linear = torch.ops.zigpass.linear.default
qkv = torch.ops.zigpass.qkv.default
gated_mlp = torch.ops.zigpass.gated_mlp.default
THOROUGH = settings(max_examples=60, deadline=None, derandomize=True)


def permuted(packed: PackedWeight, seed: int) -> PackedWeight:
    weight = unpack(packed)
    perm = torch.randperm(packed.layout.k, generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    return pack(QuantizedWeight(weight.codes, weight.bits, weight.scales, perm), packed.layout.band)


@THOROUGH
@given(data=st.data())
def test_linear_equals_the_reference(cpu: Any, data: st.DataObject) -> None:
    packed = data.draw(cpu.weights().filter(lambda packed: packed.layout.scale_axis == "in"))
    k, seed = packed.layout.k, data.draw(st.integers(0, 1000))
    packed = permuted(packed, seed)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    x = cpu.values(seed, *data.draw(st.sampled_from([(k,), (1, k), (3, k), (0, k), (2, 2, k)])), dtype=dtype)
    args = (x, list(packed.tensors), None, data.draw(cpu.thresholds(k)), packed.layout.spec)
    cpu.assert_close(linear(*args), reference.linear(*args), flat(packed), x, None)


def flat(packed: PackedWeight) -> PackedWeight:
    """The same weight without a permutation, for the bound of the comparison."""
    weight = unpack(packed)
    scales = weight.scales
    assert weight.perm is not None
    group = torch.arange(packed.layout.k) // scales.group_size  # type: ignore[union-attr]
    inverse = weight.perm.long().argsort()
    spread = type(scales)(  # type: ignore[call-arg]
        scales.scale[:, group][:, inverse],
        scales.zero[:, group][:, inverse],
        scales.zero_kind,
        1,  # type: ignore[union-attr]
    )
    return pack(QuantizedWeight(weight.codes[:, inverse], weight.bits, spread))


def test_the_flat_weight_of_this_test_is_the_same_weight(cpu: Any) -> None:
    packed = permuted(cpu.weight(0, 40, 70), 1)
    assert torch.equal(unpack(flat(packed)).dequantize(), unpack(packed).dequantize())


def test_thresholds_by_input_follow_the_permutation(cpu: Any) -> None:
    packed = permuted(cpu.weight(0, 130, 64), 1)
    x, threshold = torch.ones(1, 64), torch.zeros(64)
    threshold[5] = 2.0
    y = linear(x, list(packed.tensors), None, threshold, packed.layout.spec)
    x[0, 5] = 0
    torch.testing.assert_close(y, linear(x, list(packed.tensors), None, None, packed.layout.spec))


@pytest.mark.parametrize("order", [(0, 1, 1), (1, 0, 1), (0, 0, 1), (1, 1, 0)])
def test_qkv_mixes_permuted_and_plain_weights(cpu: Any, order: tuple[int, ...]) -> None:
    weights = [cpu.weight(seed, n, 96) for seed, n in enumerate((160, 64, 64))]
    weights = [permuted(w, seed) if wanted else w for seed, (w, wanted) in enumerate(zip(weights, order, strict=True))]
    tensors = [tensor for w in weights for tensor in w.tensors]
    args = (cpu.values(9, 1, 96), tensors, [None] * 3, torch.tensor([0.5]), [w.layout.spec for w in weights])
    for y, expected in zip(qkv(*args), reference.qkv(*args), strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("order", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_gated_mlp_with_permuted_weights(cpu: Any, order: tuple[int, ...], rows: int) -> None:
    weights = [cpu.weight(seed, *shape) for seed, shape in enumerate([(160, 96), (160, 96), (96, 160)])]
    weights = [permuted(w, seed) if wanted else w for seed, (w, wanted) in enumerate(zip(weights, order, strict=True))]
    args = (
        cpu.values(9, rows, 96),
        *(list(w.tensors) for w in weights),
        *(None, None, None),
        *(torch.tensor([0.3]), torch.rand(160, generator=torch.Generator().manual_seed(0)) * 0.05),
        *(w.layout.spec for w in weights),
        "silu",
    )
    torch.testing.assert_close(gated_mlp(*args), reference.gated_mlp(*args), rtol=1e-4, atol=1e-4)


def test_a_perm_of_another_size_or_dtype_is_refused(cpu: Any) -> None:
    packed = permuted(cpu.weight(0, 130, 64), 1)
    *first, perm = packed.tensors
    x = torch.ones(1, 64)
    with pytest.raises(ZigpassError, match=r"perm has shape \(63,\)"):
        linear(x, [*first, perm[:63]], None, None, packed.layout.spec)
    with pytest.raises(ZigpassError, match=r"perm of .* has dtype torch.int64"):
        linear(x, [*first, perm.long()], None, None, packed.layout.spec)
    with pytest.raises(ZigpassError, match="needs 4 tensors, got 3"):
        linear(x, first, None, None, packed.layout.spec)


def test_entries_outside_x_are_never_read(cpu: Any) -> None:
    packed = permuted(cpu.weight(0, 130, 64), 1)
    *first, perm = packed.tensors
    outside = torch.full_like(perm, 2**31 - 1)
    y = linear(torch.ones(1, 64), [*first, outside], None, None, packed.layout.spec)
    assert bool(y.isfinite().all())
