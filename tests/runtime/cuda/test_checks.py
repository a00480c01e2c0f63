"""Operands that the kernels would read wrongly are refused before a launch; the checks need no GPU."""

import pytest
import torch

from tests.weights import random_weight
from zigpass.runtime import Layout, ZigpassError, ops, pack
from zigpass.runtime.cuda.checks import check_operands, raise_misfit


def operands(scale_axis="in"):
    result = pack(random_weight(256, 512, 4, scale_axis))
    # Storage that the kernels' 16-byte reads may start at; malloc promises as much.
    return list(result.tensors), result.layout


def check(weight, layout, x=None, bias=None, threshold=None):
    check_operands(torch.zeros(512) if x is None else x, [weight], [bias], [threshold], [layout])


def misaligned(tensor):
    return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_operands_that_fit(scale_axis):
    weight, layout = operands(scale_axis)
    check(weight, layout, bias=torch.zeros(256, dtype=torch.bfloat16), threshold=torch.zeros(512))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t.long(), "codes of .* are torch.int64, expected torch.int32"),
        (0, misaligned, "codes of .* must be contiguous and aligned to 16 bytes"),
        (1, misaligned, "scale of .* must be contiguous and aligned to 16 bytes"),
        (1, lambda t: t.repeat_interleave(2)[::2], "scale of .* must be contiguous"),
        (1, lambda t: t.double(), "has scale torch.float64 and zero torch.uint8"),
        (2, lambda t: t.half(), "zero of .* is torch.float16"),
        (2, lambda t: t[:-128].clone(), "scale and zero of .* have different sizes"),
    ],
)
def test_weights_that_do_not_fit(index, change, message):
    weight, layout = operands()
    weight[index] = change(weight[index])
    with pytest.raises(ZigpassError, match=message):
        check(weight, layout)


def test_records_and_permutations_that_do_not_fit():
    weight, layout = operands("out")
    with pytest.raises(ZigpassError, match=r"scale of .* is torch.float32, expected torch.int32"):
        check([weight[0], weight[1].float()], layout)
    weight, layout = operands()
    permuted = Layout.parse(layout.spec + ":perm")
    with pytest.raises(ZigpassError, match=r"perm of .* must be contiguous"):
        check([*weight, torch.zeros(1024, dtype=torch.int32)[::2]], permuted)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(255), r"bias of .* is torch.float32 \(255,\)"),
        (torch.zeros(256, dtype=torch.int32), "bias of .* is torch.int32"),
    ],
)
def test_biases_that_do_not_fit(bias, message):
    with pytest.raises(ZigpassError, match=message):
        check(*operands(), bias=bias)


def test_thresholds_that_do_not_fit():
    threshold = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(
        ZigpassError, match=f"threshold is {threshold.dtype} on {threshold.device}, expected float32, or int32"
    ):
        check(*operands(), threshold=threshold)


def test_operands_on_another_device_are_named():
    weight, layout = operands()
    there = torch.device("cuda", 1)
    with pytest.raises(ZigpassError, match=r"codes of .* is on cpu, x on cuda:1"):
        raise_misfit(there, [weight], [], [], [layout])
    with pytest.raises(
        ZigpassError, match=r"threshold is torch.float32 on cpu, expected float32, or int32 for a count, on cuda:1"
    ):
        raise_misfit(there, [], [], [torch.zeros(1)], [])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(511), "x has 511 features, the weight .* has K=512"),
        (torch.zeros(3, 0), "x has 0 features"),
        (torch.tensor(1.0), "x is a number"),
        (torch.zeros(512, dtype=torch.float64), "x has dtype torch.float64"),
    ],
)
def test_inputs_that_do_not_fit(x, message):
    weight, layout = operands()
    with pytest.raises(ZigpassError, match=message):
        ops.check_linear(x, weight, None, layout.spec)
