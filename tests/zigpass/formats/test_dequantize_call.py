"""The calls that dequantize a weight in a graph: codes and scales out of their arguments."""

import pytest
import torch

pytest.importorskip("torchao", reason="torchao is not installed")

import torchao.quantization.pt2e  # noqa: F401  # registers the operators
from torch.ao.quantization.fx import _decomposed  # noqa: F401

from zigpass.formats.dequantize_call import DequantizeCall
from zigpass.formats.dequantized_linear import DequantizedLinear
from zigpass.formats.registry import find_recognizer
from zigpass.formats.verify import check_recovered
from zigpass.runtime import ZigpassError

N, K = 24, 64
AFFINE = torch.ops.torchao.dequantize_affine.default
DECOMPOSED = torch.ops.quantized_decomposed


def parts(groups, low=-8, high=7, dtype=torch.int8, rows=N):
    """Codes [N, K], scales and zeros [rows, groups]."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(low, high + 1, (N, K), generator=generator).to(dtype)
    scale = torch.rand(rows, groups, generator=generator) * 0.1 + 0.01
    return codes, scale, torch.randint(low, high + 1, (rows, groups), generator=generator)


def affine(block=(1, 32), low=-8, high=7, dtype=torch.int8, **changes):
    codes, scale, zero = parts(K // block[1], low, high, dtype, N // block[0])
    given = {"input": codes, "block_size": list(block), "scale": scale, "zero_point": zero, "input_dtype": dtype}
    return DequantizedLinear(AFFINE, {**given, "quant_min": low, "quant_max": high, **changes}, None)


def decomposed(op, groups, **settings):
    codes, scale, zero = parts(groups)
    given = {"input": codes, "scales": scale, "zero_points": zero, "quant_min": -8, "quant_max": 7, "dtype": torch.int8}
    if groups == 1:
        given |= {"scales": scale[:, 0], "zero_points": zero[:, 0]}
    return DequantizedLinear(op, {**given, **settings}, None)


def per_tensor(scale, zero):
    codes = parts(1)[0]
    given = {"input": codes, "scale": scale, "zero_point": zero, "quant_min": -8, "quant_max": 7, "dtype": torch.int8}
    op = DECOMPOSED.dequantize_per_tensor
    return DequantizedLinear(op.tensor if isinstance(scale, torch.Tensor) else op.default, given, None)


CALLS = {
    "groups": (affine(), 4, 32),
    "blocks of rows": (affine((4, 32)), 4, 32),
    "rows": (affine((1, K)), 4, K),
    "unsigned": (affine(low=0, high=15, dtype=torch.uint8), 4, 32),
    "3 bits": (affine(low=-4, high=3), 4, 32),
    "8 bits": (affine(low=-128, high=127), 8, 32),
    "range of the dtype": (affine(quant_min=None, quant_max=None), 8, 32),
    "no zeros": (affine(zero_point=None), 4, 32),
    "bfloat16": (affine(output_dtype=torch.bfloat16), 4, 32),
    "per channel": (decomposed(DECOMPOSED.dequantize_per_channel.default, 1, axis=0), 4, K),
    "per channel, no zeros": (
        decomposed(DECOMPOSED.dequantize_per_channel.default, 1, axis=0, zero_points=None),
        4,
        K,
    ),
    "per group": (
        decomposed(DECOMPOSED.dequantize_per_channel_group.default, 2, group_size=32, output_dtype=torch.float32),
        4,
        32,
    ),
    "per tensor": (per_tensor(0.037, -3), 4, K),
    "per tensor, as tensors": (per_tensor(torch.tensor(0.037), torch.tensor(-3)), 4, K),
}


@pytest.mark.parametrize("name", CALLS)
def test_recovered_weight_is_what_the_call_gives(name):
    module, bits, group_size = CALLS[name]
    recognizer = find_recognizer(module)
    assert isinstance(recognizer, DequantizeCall)
    assert recognizer.refusal(module) is None
    weight = recognizer.recover(module).weight
    check_recovered(recognizer, weight, recognizer.dequantize(module))
    assert (weight.bits, weight.scales.group_size) == (bits, group_size)
    assert torch.equal(weight.dequantize().to(module.dequantize().dtype), module.dequantize())
    x = torch.randn(3, K)
    assert torch.equal(module(x.to(module.dequantize().dtype)), x.to(module.dequantize().dtype) @ module.dequantize().T)


@pytest.mark.parametrize("name", ["groups", "per channel", "per tensor"])
def test_another_meaning_of_the_codes_is_caught(name):
    module, _, _ = CALLS[name]
    weight = DequantizeCall().recover(module).weight
    weight.codes[3, 5] ^= 1
    with pytest.raises(ZigpassError, match=r"1 of 1536 recovered weights differ .* first row 3, column 5"):
        check_recovered(DequantizeCall(), weight, module.dequantize())


def test_a_zero_that_does_not_fit_is_caught():
    module = affine(zero_point=torch.full((N, 2), 300))
    weight = DequantizeCall().recover(module).weight
    with pytest.raises(ZigpassError, match="recovered weights differ"):
        check_recovered(DequantizeCall(), weight, module.dequantize())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            decomposed(DECOMPOSED.dequantize_per_channel.default, 1, axis=1),
            "its scales belong to single inputs (axis=1)",
        ),
        (
            affine(input=parts(2)[0].to(torch.int32), input_dtype=torch.int32),
            "its codes are torch.int32 from -8 to 7; supported are int8 and uint8",
        ),
        (affine(scale=torch.ones(N, 3)), "it has 72 scales for blocks of 1 x 32 in a 24 x 64 weight"),
    ],
)
def test_refusals(module, reason):
    assert reason in DequantizeCall().refusal(module)
