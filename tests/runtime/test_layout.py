import dataclasses

import pytest

from zigpass.runtime import Layout, ZigpassError

SMOLLM_DOWN = Layout(n=576, k=1536, bits=4, scale_axis="in", group_size=128, zero_kind="sub_int", band=640)


def test_geometry_of_a_weight_whose_rows_are_not_whole_blocks():
    assert SMOLLM_DOWN.padded_n == 640
    assert SMOLLM_DOWN.words_per_block == 16
    assert SMOLLM_DOWN.num_code_words * 4 == 640 * 1536 // 2
    assert SMOLLM_DOWN.num_groups == 12
    assert SMOLLM_DOWN.num_scales == 12 * 640


def test_last_band_may_be_shorter():
    layout = SMOLLM_DOWN.with_band(256)
    assert [layout.band_rows(band) for band in range(layout.num_bands)] == [(0, 256), (256, 512), (512, 640)]


def test_last_group_may_be_shorter():
    assert dataclasses.replace(SMOLLM_DOWN, k=576).num_groups == 5


def test_band_that_cuts_a_superblock_counts_its_record_twice():
    layout = Layout(n=768, k=1, bits=4, scale_axis="out", group_size=32, zero_kind="column", band=384)
    assert [layout.band_superblocks(band) for band in range(2)] == [(0, 2), (1, 3)]
    assert layout.num_scales == 4 * 4


def test_band_is_cut_to_all_rows():
    assert SMOLLM_DOWN.with_band(1024).band == 640
    assert SMOLLM_DOWN.with_band(None).band == 640


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("axis", "group", "zero"), [("in", 32, "add_float"), ("out", 32, "column")])
def test_spec_reads_back(bits, axis, group, zero):
    layout = Layout(n=1000, k=37, bits=bits, scale_axis=axis, group_size=group, zero_kind=zero, band=128)
    assert Layout.parse(layout.spec) == layout


def test_spec_is_readable():
    assert SMOLLM_DOWN.spec == "zigzag1:4bit:576x1536:in128:sub_int:band640"


def test_permuted_columns_show_in_the_spec_and_are_one_more_tensor():
    permuted = dataclasses.replace(SMOLLM_DOWN, permuted=True)
    assert permuted.spec == "zigzag1:4bit:576x1536:in128:sub_int:band640:perm"
    assert Layout.parse(permuted.spec) == permuted
    assert permuted.with_band(128).permuted
    assert (SMOLLM_DOWN.num_tensors, permuted.num_tensors) == (3, 4)


def test_columns_with_scales_of_their_own_are_not_permuted():
    with pytest.raises(ZigpassError, match='scale_axis "out" has no groups of inputs'):
        Layout(n=8, k=8, bits=4, scale_axis="out", group_size=32, zero_kind="column", band=128, permuted=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "N=0"),
        ({"k": 0}, "K=0"),
        ({"bits": 3}, "bits must be one of (2, 4, 8), got 3"),
        ({"band": 100}, "band must be a multiple of 128 and at most 640 for N=576, got 100"),
        ({"band": 768}, "at most 640"),
        ({"group_size": 0}, "group_size must be positive, got 0"),
        ({"scale_axis": "diagonal"}, 'scale_axis must be "in" or "out", got \'diagonal\''),
        ({"zero_kind": "column"}, 'scale_axis "in" does not go with zero_kind "column"'),
        ({"zero_kind": "none"}, "zero_kind must be one of"),
        ({"scale_axis": "out", "zero_kind": "column"}, "blocks of 32 rows, got group_size 128"),
    ],
)
def test_fields_out_of_range_are_named(change, message):
    with pytest.raises(ZigpassError) as caught:
        dataclasses.replace(SMOLLM_DOWN, **change)
    assert message in str(caught.value)


@pytest.mark.parametrize("spec", ["", "zigzag1:4bit", SMOLLM_DOWN.spec + "x"])
def test_other_text_is_not_a_layout(spec):
    with pytest.raises(ZigpassError, match="not a zigzag layout"):
        Layout.parse(spec)


def test_unknown_version_is_refused():
    with pytest.raises(ZigpassError, match="layout version 2, this zigpass reads version 1"):
        Layout.parse(SMOLLM_DOWN.spec.replace("zigzag1", "zigzag2"))
