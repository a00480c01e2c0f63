import pytest
import torch

from zigpass.formats.hqq import Hqq
from zigpass.formats.registry import find_recognizer
from zigpass.formats.verify import check_recovered
from zigpass.runtime import ZigpassError
from zigpass.tools.quantized_modules import HqqLinear, random_codes


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_codes_and_scales_are_those_that_were_packed(bits, dtype):
    module = HqqLinear(bits=bits, dtype=dtype)
    codes = random_codes(48, 128, 32, bits)[0]
    weight = Hqq().recover(module).weight
    check_recovered(Hqq(), weight, Hqq().dequantize(module))
    assert torch.equal(weight.codes.long(), codes)
    assert torch.equal(weight.scales.scale.flatten(), module.meta["scale"].flatten())
    assert torch.equal(weight.scales.zero.flatten(), module.meta["zero"].flatten())
    assert weight.scales.zero_kind == "sub_float"


def test_in_float32_the_meaning_is_hqqs_own_bit_for_bit():
    module = HqqLinear(dtype=torch.float32)
    assert torch.equal(Hqq().recover(module).weight.dequantize(), module.dequantize())


def test_in_float16_hqq_rounds_where_zigpass_does_not():
    module = HqqLinear()
    ours, own = Hqq().recover(module).weight.dequantize(), module.dequantize().float()
    assert not torch.equal(ours, own)
    torch.testing.assert_close(ours, own, rtol=2e-3, atol=2e-4)


def test_wrong_nibbles_would_be_caught():
    module = HqqLinear()
    weight = Hqq().recover(module).weight
    weight.codes.copy_(weight.codes.flip(0))
    with pytest.raises(ZigpassError, match="recovered weights differ"):
        check_recovered(Hqq(), weight, Hqq().dequantize(module))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": 0}, "its groups run across the outputs (axis=0)"),
        ({"packing": "3bit_32"}, "its packing is 3bit_32; supported are 8bit_u8, 4bit_u8, 2bit_u8, 1bit_u8"),
        ({"quant_zero": True}, "its scales or zeros are quantized themselves"),
        ({"zero_scale": torch.zeros(2)}, "its scales are offloaded"),
    ],
)
def test_refusals(change, message):
    module = HqqLinear()
    module.meta.update(change)
    assert isinstance(find_recognizer(module), Hqq)
    assert message in Hqq().refusal(module)
