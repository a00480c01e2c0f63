import pytest
import torch

from zigpass.formats.gptq import Gptq, group_order
from zigpass.formats.registry import find_recognizer
from zigpass.formats.verify import check_recovered, forward_of_identity
from zigpass.linear import ZigzagLinear
from zigpass.prepare import prepare
from zigpass.runtime import ZigpassError, pack, unpack
from zigpass.tools.quantized_modules import GptqLinear, pack_along, random_codes


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_scales_and_zeros_are_those_that_were_packed(version, act_order, bits):
    module = GptqLinear(version=version, act_order=act_order, bits=bits)
    codes, zeros, scales = random_codes(48, 128, 32, bits)
    weight = Gptq().recover(module).weight
    check_recovered(Gptq(), weight, Gptq().dequantize(module))
    order = slice(None) if weight.perm is None else weight.perm.long()
    assert torch.equal(weight.codes.long(), codes[:, order])
    assert torch.equal(weight.scales.zero.long(), zeros)
    assert torch.equal(weight.scales.scale, scales.half())
    assert (weight.perm is not None) == act_order


@pytest.mark.parametrize("act_order", [False, True])
def test_the_packed_weight_is_the_float32_meaning_bit_for_bit(act_order):
    module = GptqLinear(act_order=act_order)
    codes, zeros, scales = random_codes(48, 128, 32)
    group = module.g_idx.long()
    expected = scales.half().float()[:, group] * (codes - zeros[:, group])
    weight = Gptq().recover(module).weight
    assert torch.equal(unpack(pack(weight)).dequantize(), expected)


def test_bfloat16_scales_are_kept():
    weight = Gptq().recover(GptqLinear(scale_dtype=torch.bfloat16)).weight
    assert weight.scales.scale.dtype == torch.bfloat16


def test_a_last_group_may_be_short():
    module = GptqLinear(k=104, group_size=32, act_order=True)
    weight = Gptq().recover(module).weight
    check_recovered(Gptq(), weight, Gptq().dequantize(module))
    assert weight.layout().num_groups == 4


def test_zeros_of_version_1_that_wrap_around():
    """Some writers store zero 0 as 15 and read it back modulo 16."""
    module = GptqLinear()
    codes, zeros, _ = random_codes(48, 128, 32)
    zeros[0, 0] = 0
    module.qzeros = pack_along(((zeros - 1) & 15).T, 1, 4)
    forward = type(module).forward

    class Wrapping(GptqLinear):
        def forward(self, x):
            kept, self.qzeros, self.version = self.qzeros, pack_along(zeros.T, 1, 4), 2
            try:
                return forward(self, x)
            finally:
                self.qzeros, self.version = kept, 1

    module.__class__ = Wrapping
    weight = Gptq().recover(module).weight
    assert torch.equal(weight.scales.zero.long(), zeros)
    assert torch.equal(weight.codes.long(), codes)


def test_bias_comes_along_and_does_not_disturb_the_comparison():
    module = GptqLinear(bias=True)
    bias = module.bias.clone()
    model = prepare(torch.nn.Sequential(module), progress=False)
    assert isinstance(model[0], ZigzagLinear)
    assert torch.equal(model[0].bias, bias)


def test_a_bias_is_put_back_when_the_forward_fails():
    module = GptqLinear(bias=True)
    module.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        forward_of_identity(module, 128, torch.float16)
    assert module.bias is not None


def test_groups_of_unequal_sizes_are_refused():
    with pytest.raises(ZigpassError, match="g_idx puts between 1 and 3 inputs in its 2 groups"):
        group_order(torch.tensor([0, 1, 1, 1]), 2)


def test_order_of_inputs():
    assert group_order(torch.tensor([0, 0, 1, 1]), 2) == (None, 2)
    assert group_order(torch.tensor([0, 0, 0, 1]), 2) == (None, 3)
    order, size = group_order(torch.tensor([1, 0, 1, 0]), 2)
    assert (order.tolist(), size) == ([1, 3, 0, 2], 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: setattr(module, "bits", 3), "its codes have 3 bits; supported are 2, 4, 8"),
        (lambda module: setattr(module, "adapter", object()), "an adapter is attached to it"),
        (lambda module: setattr(module, "qzeros", module.qzeros[:, :3]), "not those of a GPTQ checkpoint"),
    ],
)
def test_refusals(change, message):
    module = GptqLinear()
    change(module)
    assert isinstance(find_recognizer(module), Gptq)
    assert message in Gptq().refusal(module)


def test_zeros_off_by_one_would_be_caught():
    module = GptqLinear()
    weight = Gptq().recover(module).weight
    weight.scales.zero.add_(1)
    with pytest.raises(ZigpassError, match="6144 of 6144 recovered weights differ"):
        check_recovered(Gptq(), weight, Gptq().dequantize(module))
