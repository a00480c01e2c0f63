import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize

from zigpass.formats.ggml_blocks import READERS, read_blocks
from zigpass.runtime import ZigpassError, pack, unpack
from zigpass.tools.ggml_data import FACTOR_BYTES, random_blocks


@pytest.mark.parametrize("name", sorted(READERS))
def test_blocks_keep_every_bit(name):
    kind = GGMLQuantizationType[name]
    data = random_blocks(name, rows=37, inputs=512)
    weight = read_blocks(name, data)
    expected = torch.from_numpy(dequantize(data, kind))
    assert weight.codes.shape == (37, 512)
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(unpack(pack(weight)).dequantize(), expected)


def test_every_type_has_random_blocks_with_all_bits_in_use():
    for name in READERS:
        data = random_blocks(name, rows=8, inputs=2048).reshape(-1, READERS[name].size)
        used = np.bitwise_or.reduce(data, axis=0)
        plain = np.ones(len(used), bool)
        plain[[byte for start in FACTOR_BYTES[name] for byte in (start, start + 1)]] = False
        assert (used[plain] == 255).all(), name


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_gguf_package_quantizes_comes_back(name):
    kind = GGMLQuantizationType[name]
    data = quantize(np.random.default_rng(0).standard_normal((37, 96)).astype(np.float32), kind)
    assert torch.equal(read_blocks(name, data).dequantize(), torch.from_numpy(dequantize(data, kind)))


def test_nibble_order_of_q4_0():
    block = np.zeros((1, 18), np.uint8)
    block[0, :2] = np.frombuffer(np.float16(1.0).tobytes(), np.uint8)
    block[0, 2] = 0xA3
    weight = read_blocks("Q4_0", block).dequantize()[0]
    assert (weight[0], weight[16]) == (3 - 8, 10 - 8)


def test_products_of_factor_and_scale_would_not_fit_half_precision():
    """Why K types have float32 scales."""
    scale = read_blocks("Q4_K", random_blocks("Q4_K", rows=4, inputs=512)).scales.scale
    assert scale.dtype == torch.float32
    assert (scale.half().float() != scale).any()


def test_other_types_are_named():
    with pytest.raises(ZigpassError, match="GGML type IQ4_NL is not supported, supported are Q4_0, Q4_1, Q5_0"):
        read_blocks("IQ4_NL", np.zeros((1, 144), np.uint8))


def test_rows_must_be_whole_blocks():
    with pytest.raises(ZigpassError, match="a row of 21 bytes is not a whole number of Q4_1 blocks of 20 bytes"):
        read_blocks("Q4_1", np.zeros((1, 21), np.uint8))
