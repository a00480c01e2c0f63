import pytest
import torch

from zigpass.runtime import ColumnScales, GroupScales, QuantizedWeight, ZigpassError

CODES = torch.tensor([[0, 1, 2], [3, 4, 15]], dtype=torch.uint8)


def group_scales(zero_kind, zero):
    scale = torch.tensor([[0.5, 2.0], [1.0, 3.0]])
    return GroupScales(scale, zero, zero_kind, group_size=2)


@pytest.mark.parametrize(
    ("zero_kind", "zero", "expected"),
    [
        ("sub_int", torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8), [[-0.5, 0, 0], [0, 1, 33]]),
        ("sub_float", torch.tensor([[0.5, 1.5], [3, 4]]), [[-0.25, 0.25, 1], [0, 1, 33]]),
        ("add_float", torch.tensor([[1.0, 2.0], [3, 4]]), [[1, 1.5, 6], [6, 7, 49]]),
    ],
)
def test_group_scales_mean_what_their_zero_kind_says(zero_kind, zero, expected):
    weight = QuantizedWeight(CODES, 4, group_scales(zero_kind, zero))
    assert weight.dequantize().tolist() == expected


def test_column_scales_belong_to_blocks_of_rows_of_one_column():
    codes = torch.ones(40, 2, dtype=torch.uint8)
    scales = ColumnScales(
        d=torch.tensor([[1.0, 2.0]]).half(),
        dmin=torch.tensor([[0.5, 0.0]]).half(),
        scale6=torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8),
        min6=torch.tensor([[2, 9], [4, 9]], dtype=torch.uint8),
    )
    dequantized = QuantizedWeight(codes, 4, scales).dequantize()
    assert dequantized[0].tolist() == [0.0, 4.0]
    assert dequantized[31].tolist() == [0.0, 4.0]
    assert dequantized[32].tolist() == [1.0, 8.0]


def test_codes_must_fit_their_bits():
    with pytest.raises(ZigpassError, match="codes hold 15, which does not fit 2 bits"):
        QuantizedWeight(CODES, 2, group_scales("add_float", torch.zeros(2, 2)))


def test_empty_codes_are_refused():
    with pytest.raises(ZigpassError, match="non-empty uint8 matrix"):
        QuantizedWeight(CODES[:0], 4, group_scales("add_float", torch.zeros(2, 2)))


def test_shapes_and_dtypes_must_fit():
    with pytest.raises(ZigpassError, match=r"zero has shape \(2, 3\), expected \[N, groups\] = \(2, 2\)"):
        QuantizedWeight(CODES, 4, group_scales("add_float", torch.zeros(2, 3)))
    with pytest.raises(ZigpassError, match=r'zero has dtype torch.float32, which zero_kind "sub_int" does not allow'):
        QuantizedWeight(CODES, 4, group_scales("sub_int", torch.zeros(2, 2)))
    with pytest.raises(ZigpassError, match="min6 holds 64, which does not fit 6 bits"):
        QuantizedWeight(
            CODES,
            4,
            ColumnScales(
                torch.ones(1, 3).half(),
                torch.ones(1, 3).half(),
                torch.ones(1, 3, dtype=torch.uint8),
                torch.full((1, 3), 64, dtype=torch.uint8),
            ),
        )


def test_permuted_columns_dequantize_in_the_order_of_the_inputs():
    plain = QuantizedWeight(CODES, 4, group_scales("add_float", torch.tensor([[1.0, 2.0], [3, 4]])))
    perm = torch.tensor([2, 0, 1], dtype=torch.int32)
    weight = QuantizedWeight(CODES, 4, plain.scales, perm)
    # Column 0 is input 2, column 1 input 0, column 2 input 1.
    assert torch.equal(weight.dequantize(), plain.dequantize()[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("perm", "message"),
    [
        (torch.tensor([0, 1, 1], dtype=torch.int32), "perm does not hold every input 0..2 once"),
        (torch.tensor([0, 1, 3], dtype=torch.int32), "perm does not hold every input 0..2 once"),
        (torch.tensor([0, 1], dtype=torch.int32), r"perm is torch.int32 \(2,\), expected torch.int32 \(3,\)"),
        (torch.tensor([0, 1, 2]), "perm is torch.int64"),
    ],
)
def test_perm_must_be_a_permutation(perm, message):
    with pytest.raises(ZigpassError, match=message):
        QuantizedWeight(CODES, 4, group_scales("add_float", torch.zeros(2, 2)), perm)
