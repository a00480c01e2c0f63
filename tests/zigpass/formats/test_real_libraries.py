"""Modules made by the libraries themselves; each test is skipped where its library is not installed."""

import pytest
import torch
from torch import nn

from tests.models import SwiGlu
from zigpass.formats.awq import Awq
from zigpass.formats.gptq import Gptq
from zigpass.formats.hqq import Hqq
from zigpass.formats.registry import find_recognizer
from zigpass.formats.verify import check_recovered
from zigpass.linear import ZigzagLinear, find_linears
from zigpass.prepare import prepare
from zigpass.runtime import ZigpassError


def need(name, package=None):
    return pytest.importorskip(name, reason=f"{package or name} is not installed")


def recovered(module):
    recognizer = find_recognizer(module)
    assert recognizer.refusal(module) is None
    weight = recognizer.recover(module).weight
    check_recovered(recognizer, weight, recognizer.dequantize(module))
    return recognizer, weight


def prepared_is_close(model, x, bound):
    """The model before and after `prepare`, as a relative error."""
    with torch.no_grad():
        expected = model(x).float()
        actual = prepare(model, progress=False)(x).float()
    error = float((actual - expected).norm() / expected.norm())
    assert error < bound, error


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hqq(bits, dtype):
    hqq = need("hqq.core.quantize", "hqq")
    config = hqq.BaseQuantizeConfig(nbits=bits, group_size=32, axis=1)
    module = hqq.HQQLinear(nn.Linear(128, 96), config, compute_dtype=dtype, device="cpu")
    recognizer, weight = recovered(module)
    assert isinstance(recognizer, Hqq)
    assert weight.scales.scale.dtype == dtype


@pytest.mark.parametrize(
    ("settings", "reason"), [({"axis": 0}, "axis=0"), ({"axis": 1, "nbits": 3}, "its packing is 3bit_32")]
)
def test_hqq_refusals(settings, reason):
    hqq = need("hqq.core.quantize", "hqq")
    config = hqq.BaseQuantizeConfig(**{"nbits": 4, "group_size": 32, **settings})
    module = hqq.HQQLinear(nn.Linear(128, 96), config, compute_dtype=torch.float32, device="cpu")
    with pytest.raises(ZigpassError, match=reason):
        prepare(nn.Sequential(module), progress=False)


def gptq_module(gptqmodel_torch, act_order, bits=4):
    torch.manual_seed(0)
    linear = nn.Linear(128, 96, bias=True).half()
    module = gptqmodel_torch.TorchLinear(
        bits=bits, group_size=32, sym=False, desc_act=act_order, in_features=128, out_features=96, bias=True,
        pack_dtype=torch.int32,
    )  # fmt: skip
    g_idx = torch.arange(128, dtype=torch.int32) // 32
    if act_order:
        g_idx = g_idx[torch.randperm(128)]
    scales = torch.rand(96, 4).half() * 0.02 + 0.01
    zeros = torch.randint(1, 1 << bits, (96, 4)).half()
    module.pack(linear, scales, zeros, g_idx=g_idx)
    module.post_init()
    return module.eval()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptqmodel(act_order, bits):
    gptqmodel_torch = need("gptqmodel.nn_modules.qlinear.torch", "gptqmodel")
    module = gptq_module(gptqmodel_torch, act_order, bits)
    recognizer, weight = recovered(module)
    assert isinstance(recognizer, Gptq)
    assert (weight.perm is not None) == act_order
    prepared_is_close(nn.Sequential(module), torch.randn(1, 128).half(), 2e-3)


def test_gptqmodel_awq():
    awq = need("gptqmodel.nn_modules.qlinear.torch_awq", "gptqmodel")
    torch.manual_seed(0)
    linear = nn.Linear(128, 96, bias=True).half()
    module = awq.AwqTorchLinear(
        bits=4, group_size=32, sym=False, desc_act=False, in_features=128, out_features=96, bias=True,
        register_buffers=True,
    )  # fmt: skip
    module.pack(linear, torch.rand(96, 4).half() * 0.02 + 0.01, torch.randint(0, 16, (96, 4)).half())
    module.post_init()
    recognizer, _ = recovered(module.eval())
    assert isinstance(recognizer, Awq)
    prepared_is_close(nn.Sequential(module), torch.randn(1, 128).half(), 2e-3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "group_size"), [("group", 32), ("channel", None), ("tensor", None)])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors(symmetric, strategy, group_size, bits):
    quantization = need("compressed_tensors.quantization", "compressed-tensors")
    from compressed_tensors.compressors.base import compress_module
    from compressed_tensors.quantization.lifecycle import initialize_module_for_quantization

    if strategy == "tensor" and not symmetric:
        pytest.skip("the library stores no packed zero for one asymmetric scale")
    torch.manual_seed(0)
    linear = nn.Linear(128, 96).bfloat16()
    weights = quantization.QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group_size
    )
    initialize_module_for_quantization(linear, quantization.QuantizationScheme(targets=["Linear"], weights=weights))
    values = linear.weight.data.float()
    runs = values.view(
        1 if strategy == "tensor" else 96, -1, group_size or (128 if strategy == "channel" else 96 * 128)
    )
    half = 1 << (bits - 1)
    if symmetric:
        scale = runs.abs().amax(-1) / half
    else:
        scale = (runs.amax(-1) - runs.amin(-1)) / (2 * half - 1)
        zero = (-half - runs.amin(-1) / scale).round().clamp(-half, half - 1)
        linear.weight_zero_point.data.copy_(zero.reshape(linear.weight_zero_point.shape))
    linear.weight_scale.data.copy_(scale.reshape(linear.weight_scale.shape))
    compress_module(linear)
    recognizer, weight = recovered(linear)
    assert recognizer.name == "compressed-tensors pack-quantized"
    model = prepare(nn.Sequential(linear), progress=False)
    assert isinstance(model[0], ZigzagLinear)
    error = float((weight.dequantize() - values).abs().max())
    assert error < 1.1 * float(scale.max())


def test_compressed_tensors_activations_are_refused():
    quantization = need("compressed_tensors.quantization", "compressed-tensors")
    from compressed_tensors.quantization.lifecycle import initialize_module_for_quantization

    linear = nn.Linear(128, 96)
    args = quantization.QuantizationArgs(num_bits=8, symmetric=True, strategy="channel")
    inputs = quantization.QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs)
    initialize_module_for_quantization(linear, scheme)
    from compressed_tensors.compressors.base import compress_module

    compress_module(linear, "pack-quantized")
    with pytest.raises(ZigpassError, match="0: compressed-tensors pack-quantized: its activations are quantized too"):
        prepare(nn.Sequential(linear), progress=False)


@pytest.mark.parametrize(("name", "reason"), [("Linear4bit", "NF4 and FP4"), ("Linear8bitLt", "outlier columns")])
def test_bitsandbytes_is_refused_with_the_reason(name, reason):
    bitsandbytes = need("bitsandbytes")
    model = nn.Sequential(getattr(bitsandbytes.nn, name)(128, 96))
    with pytest.raises(ZigpassError, match=f"0: bitsandbytes: .*{reason}"):
        prepare(model, progress=False)


def test_linears_under_peft_adapters_are_refused():
    peft = need("peft")
    torchao = need("torchao.quantization", "torchao")
    model = SwiGlu(64, 96)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    wrapped = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["up_proj"], r=4), model)
    with pytest.raises(
        ZigpassError, match=r"up_proj.base_layer: torchao .*: it is wrapped by the adapter .*; merge it"
    ):
        prepare(wrapped, progress=False)
    prepare(wrapped, progress=False, filter_fn=lambda module, name: "base_layer" not in name)
    assert [name for name, _ in find_linears(wrapped)] == ["gate_proj", "down_proj"]
