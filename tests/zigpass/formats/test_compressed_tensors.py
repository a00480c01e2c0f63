"""The pack-quantized form, from tensors packed here; `test_real_libraries` has modules that the library made."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zigpass.formats import compressed_tensors_packed as format_file
from zigpass.formats.compressed_tensors_packed import CompressedTensorsPacked, PackedTensors, recover_packed
from zigpass.formats.registry import find_recognizer
from zigpass.linear import ZigzagLinear
from zigpass.prepare import prepare
from zigpass.runtime import ZigpassError
from zigpass.tools.quantized_modules import pack_along, random_codes


def packed_tensors(n=48, k=128, group_size=32, bits=4, symmetric=False, dtype=torch.bfloat16):
    """Tensors of a weight, and the float32 weight they stand for."""
    codes, zeros, scales = random_codes(n, k, group_size, bits)
    scales = scales.to(dtype)
    if symmetric:
        zeros = torch.full_like(zeros, 1 << (bits - 1))
    group = torch.arange(k) // group_size
    weight = scales.float()[:, group] * (codes - zeros[:, group])
    # Both are stored moved up by half the range, so signed and unsigned codes are the same bits.
    zero = None if symmetric else pack_along(zeros, 0, bits)
    return PackedTensors(pack_along(codes, 1, bits), scales, torch.tensor([n, k]), zero), weight


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("n", "k", "group_size"), [(48, 128, 32), (45, 124, 31), (48, 128, 128)])
def test_the_weight_is_that_of_the_tensors_bit_for_bit(n, k, group_size, bits, symmetric):
    tensors, expected = packed_tensors(n, k, group_size, bits, symmetric)
    assert torch.equal(recover_packed(tensors, bits).dequantize(), expected)


def test_one_scale_for_the_whole_tensor():
    tensors, _ = packed_tensors(group_size=128, symmetric=True)
    single = PackedTensors(tensors.packed, tensors.scale[:1, 0], tensors.shape)
    weight = recover_packed(single, 4)
    assert weight.scales.scale.shape == (48, 1)
    assert (weight.scales.scale == tensors.scale[0, 0]).all()


def test_reordered_inputs_become_a_permutation():
    tensors, _ = packed_tensors(symmetric=True)
    g_idx = (torch.arange(128) // 32)[torch.randperm(128, generator=torch.Generator().manual_seed(0))].to(torch.int32)
    weight = recover_packed(PackedTensors(tensors.packed, tensors.scale, tensors.shape, None, g_idx), 4)
    codes = random_codes(48, 128, 32)[0]
    assert torch.equal(weight.dequantize(), tensors.scale.float()[:, g_idx.long()] * (codes - 8))


def test_tensors_that_do_not_fit_are_named():
    tensors, _ = packed_tensors()
    with pytest.raises(ZigpassError, match=r"weight_packed has shape \(48, 16\) for a 48 x 136 weight of 4 bits"):
        recover_packed(PackedTensors(tensors.packed, tensors.scale, torch.tensor([48, 136])), 4)
    with pytest.raises(ZigpassError, match=r"weight_zero_point has shape \(6, 3\) for 48 rows and 4 groups"):
        recover_packed(PackedTensors(tensors.packed, tensors.scale, tensors.shape, tensors.zero_point[:, :3]), 4)


def module_of(tensors, **scheme):
    """A linear as the library leaves it: an nn.Linear without weight, with its scheme."""
    linear = nn.Linear(128, 48, bias=False)
    del linear.weight
    linear.weight_packed = nn.Parameter(tensors.packed, requires_grad=False)
    linear.weight_scale = nn.Parameter(tensors.scale, requires_grad=False)
    linear.weight_zero_point = nn.Parameter(tensors.zero_point, requires_grad=False)
    linear.weight_shape = nn.Parameter(tensors.shape, requires_grad=False)
    weights = SimpleNamespace(num_bits=4, type="int")
    linear.quantization_scheme = SimpleNamespace(
        weights=weights, input_activations=None, output_activations=None, format="pack-quantized"
    )
    linear.quantization_status = "compressed"
    vars(linear.quantization_scheme).update(scheme)
    return linear


def test_a_module_is_compared_with_the_library_and_replaced(monkeypatch):
    tensors, expected = packed_tensors()
    monkeypatch.setattr(format_file, "decompress", lambda module: expected.bfloat16())
    model = prepare(nn.Sequential(module_of(tensors)), progress=False)
    assert isinstance(model[0], ZigzagLinear)
    assert torch.equal(model[0].unpack().dequantize(), expected)


def test_a_module_that_decompresses_to_something_else_is_refused(monkeypatch):
    tensors, expected = packed_tensors()
    monkeypatch.setattr(format_file, "decompress", lambda module: (expected + 0.01).bfloat16())
    with pytest.raises(ZigpassError, match=r"0: compressed-tensors pack-quantized: .* recovered weights differ"):
        prepare(nn.Sequential(module_of(tensors)), progress=False)


def test_the_hook_that_would_decompress_the_model_goes_with_its_modules(monkeypatch):
    tensors, expected = packed_tensors()
    monkeypatch.setattr(format_file, "decompress", lambda module: expected.bfloat16())
    model = nn.Sequential(module_of(tensors))
    model.ct_decompress_hook = model.register_forward_pre_hook(lambda module, args: 1 / 0)
    prepare(model, progress=False)(torch.ones(1, 128))
    assert not hasattr(model, "ct_decompress_hook")


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"input_activations": object()}, "its activations are quantized too"),
        ({"weights": SimpleNamespace(num_bits=3, type="int")}, "its codes are int of 3 bits"),
        ({"weights": SimpleNamespace(num_bits=4, type="float")}, "its codes are float of 4 bits"),
    ],
)
def test_refusals(scheme, message):
    module = module_of(packed_tensors()[0], **scheme)
    assert isinstance(find_recognizer(module), CompressedTensorsPacked)
    assert message in CompressedTensorsPacked().refusal(module)


def test_decompressed_and_reordered_modules_are_refused():
    module = module_of(packed_tensors()[0])
    module.weight_g_idx = torch.zeros(128)
    assert "its inputs are reordered (weight_g_idx)" in CompressedTensorsPacked().refusal(module)
    del module.weight_packed
    assert "it holds no packed codes" in CompressedTensorsPacked().refusal(module)
