"""Packing is a permutation: whatever goes in comes out, and the bytes are those that the layout describes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights import assert_same, random_weight
from zigpass.runtime import (
    ColumnScales,
    GroupScales,
    Layout,
    PackedWeight,
    QuantizedWeight,
    ZigpassError,
    pack,
    repack,
    unpack,
)

SIZES = [1, 37, 128, 576, 1000, 1536]
BANDS = [None, 128, 256, 384, 512, 1024]


@settings(deadline=None, max_examples=60)
@given(
    n=st.sampled_from(SIZES) | st.integers(1, 700),
    k=st.sampled_from(SIZES) | st.integers(1, 300),
    bits=st.sampled_from([2, 4, 8]),
    band=st.sampled_from(BANDS),
    group_size=st.sampled_from([1, 16, 32, 128]),
    zero_kind=st.sampled_from(["sub_int", "sub_float", "add_float"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_group_scales_come_back(n, k, bits, band, group_size, zero_kind, dtype):
    weight = random_weight(n, k, bits, "in", group_size=group_size, zero_kind=zero_kind, dtype=dtype)
    assert_same(unpack(pack(weight, band)), weight)


@settings(deadline=None, max_examples=40)
@given(
    n=st.sampled_from(SIZES) | st.integers(1, 700),
    k=st.sampled_from(SIZES) | st.integers(1, 300),
    bits=st.sampled_from([2, 4, 8]),
    band=st.sampled_from(BANDS),
)
def test_column_scales_come_back(n, k, bits, band):
    weight = random_weight(n, k, bits, "out")
    assert_same(unpack(pack(weight, band)), weight)


@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize(("n", "k"), [(11008, 37), (37, 11008)])
def test_long_sides_come_back(n, k, scale_axis):
    weight = random_weight(n, k, 4, scale_axis)
    assert_same(unpack(pack(weight, 1024)), weight)


@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize("band", [128, 384, None])
def test_repacking_equals_packing_in_that_band(scale_axis, band):
    weight = random_weight(900, 40, 4, scale_axis)
    repacked, packed = repack(pack(weight, 256), band), pack(weight, band)
    assert repacked.layout == packed.layout
    assert all(torch.equal(a, b) for a, b in zip(repacked.tensors, packed.tensors, strict=True))


def byte_of_code(layout: Layout, row: int, column: int) -> tuple[int, int]:
    """Byte and bit position of a code, written straight from the description of the layout."""
    band = row // layout.band
    first, end = layout.band_rows(band)
    words_before = first // 128 * layout.k * layout.words_per_block
    block, row_in_block = (row - first) // 128, row % 128
    word = words_before + (column * (end - first) // 128 + block) * layout.words_per_block
    field, lane = divmod(row_in_block, layout.words_per_block)
    bit = field * layout.bits
    return (word + lane) * 4 + bit // 8, bit % 8


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("band", [128, 256, None])
def test_every_code_lies_where_the_layout_says(bits, band):
    weight = random_weight(300, 5, bits, "in")
    packed = pack(weight, band)
    data = packed.tensors[0].numpy().tobytes()
    for row in range(300):
        for column in range(5):
            byte, bit = byte_of_code(packed.layout, row, column)
            assert data[byte] >> bit & ((1 << bits) - 1) == weight.codes[row, column]


def test_golden_bytes_of_one_block():
    rows = torch.arange(128, dtype=torch.uint8)
    codes = torch.stack([rows % 16, rows // 16], 1)
    scales = GroupScales(torch.ones(128, 1).half(), torch.zeros(128, 1, dtype=torch.uint8), "sub_int", 32)
    words = pack(QuantizedWeight(codes, 4, scales)).tensors[0].numpy().view("<u4").tolist()
    # Column 0 holds row % 16, the same in all eight fields of a word; column 1 holds row // 16, the field's number.
    assert words[:16] == [0x11111111 * lane for lane in range(16)]
    assert words[16:] == [0x76543210] * 16


def test_golden_bytes_of_group_scales():
    scale = torch.arange(256.0).half().view(256, 1) + torch.tensor([[0.0, 1000.0]]).half()
    weight = QuantizedWeight(
        torch.zeros(256, 4, dtype=torch.uint8), 4, GroupScales(scale, torch.zeros_like(scale), "add_float", 2)
    )
    packed = pack(weight, 128).tensors[1].tolist()
    assert packed[:128] == list(range(128))
    assert packed[128:256] == [1000.0 + row for row in range(128)]
    assert packed[256:384] == list(range(128, 256))


def test_golden_bytes_of_a_column_record():
    scales = ColumnScales(
        d=torch.tensor([[1.0]]).half(),
        dmin=torch.tensor([[-2.0]]).half(),
        scale6=torch.tensor([[1], [2], [3], [4], [5], [6], [7], [0b110000]], dtype=torch.uint8),
        min6=torch.tensor([[0b100001], [0], [0], [0], [0], [0], [0], [15]], dtype=torch.uint8),
    )
    weight = QuantizedWeight(torch.zeros(256, 1, dtype=torch.uint8), 4, scales)
    words = pack(weight).tensors[1].numpy().view("<u4").tolist()
    assert [f"{word:08x}" for word in words] == ["c0003c00", "07654321", "f0000001", "30000008"]


def test_padding_rows_are_zero():
    packed = pack(random_weight(1, 3, 4, "in"))
    padded = unpack(PackedWeight(Layout.parse(packed.layout.spec.replace("1x3", "128x3")), packed.tensors))
    assert not padded.codes[1:].any()
    assert not padded.scales.scale[1:].any()


def test_wrong_tensors_are_named():
    packed = pack(random_weight(130, 8, 4, "in"))
    with pytest.raises(ZigpassError, match=r"codes of zigzag1:.* has shape \(7,\), expected \(256,\)"):
        PackedWeight(packed.layout, (packed.tensors[0][:7], *packed.tensors[1:]))
    with pytest.raises(ZigpassError, match="needs 3 tensors, got 2"):
        PackedWeight(packed.layout, packed.tensors[:2])


@pytest.mark.parametrize("band", [128, None])
def test_a_permutation_comes_back_and_survives_repacking(band):
    weight = random_weight(300, 70, 4, "in")
    perm = torch.randperm(70, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    weight = QuantizedWeight(weight.codes, 4, weight.scales, perm)
    packed = pack(weight, 256)
    assert packed.layout.spec.endswith(":perm")
    assert torch.equal(packed.tensors[3], perm)
    again = unpack(repack(packed, band))
    assert torch.equal(again.perm, perm)
    assert torch.equal(again.dequantize(), weight.dequantize())
    with pytest.raises(ZigpassError, match=r"perm of .* has shape \(69,\), expected \(70,\)"):
        PackedWeight(packed.layout, (*packed.tensors[:3], perm[:69]))


def test_column_scales_that_the_kernels_cannot_hold_are_refused():
    weight = random_weight(300, 8, 4, "out")
    weight.scales.d.fill_(9.0)
    weight.scales.scale6.fill_(63)
    with pytest.raises(ZigpassError, match=r"a column scale is 567, the kernels take up to 512"):
        pack(weight)
