import pytest
import torch

from zigpass.formats.awq import Awq
from zigpass.formats.gptq import Gptq
from zigpass.formats.registry import find_recognizer
from zigpass.formats.verify import check_recovered
from zigpass.tools.quantized_modules import AwqLinear, GptqLinear, random_codes


def test_codes_scales_and_zeros_are_those_that_were_packed():
    module = AwqLinear(bias=True)
    codes, zeros, scales = random_codes(48, 128, 32)
    recovered = Awq().recover(module)
    check_recovered(Awq(), recovered.weight, Awq().dequantize(module))
    assert torch.equal(recovered.weight.codes.long(), codes)
    assert torch.equal(recovered.weight.scales.zero.long(), zeros)
    assert torch.equal(recovered.weight.scales.scale, scales.half())
    assert torch.equal(recovered.weight.dequantize(), recovered.weight.scales.apply(codes.float()))
    assert recovered.bias is module.bias


def test_awq_and_gptq_are_told_apart():
    assert isinstance(find_recognizer(AwqLinear()), Awq)
    assert isinstance(find_recognizer(GptqLinear()), Gptq)
    # Square, with as many words along one side as along the other.
    assert isinstance(find_recognizer(AwqLinear(64, 64)), Awq)
    assert isinstance(find_recognizer(GptqLinear(64, 64)), Gptq)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: setattr(module, "w_bit", 3), "its codes have 3 bits; AWQ has 4"),
        (lambda module: setattr(module, "adapter", object()), "an adapter is attached to it"),
        (lambda module: setattr(module, "qweight", module.qweight.T), "are not the GEMM packing"),
    ],
)
def test_refusals(change, message):
    module = AwqLinear()
    change(module)
    assert isinstance(find_recognizer(module), Awq)
    assert message in Awq().refusal(module)
