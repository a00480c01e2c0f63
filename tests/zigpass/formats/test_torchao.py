"""torchao weights, made by torchao itself where it can make them on CPUs."""

import pytest
import torch
from torch import nn

torchao = pytest.importorskip("torchao", reason="torchao is not installed")

from torchao.quantization import (  # noqa: E402
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    PerGroup,
    quantize_,
)

from zigpass.formats.registry import find_recognizer  # noqa: E402
from zigpass.formats.torchao_int4_opaque import TorchaoInt4Opaque  # noqa: E402
from zigpass.formats.torchao_int4_plain import TorchaoInt4Plain  # noqa: E402
from zigpass.formats.torchao_int4_tiled import TorchaoInt4Tiled  # noqa: E402
from zigpass.formats.torchao_int8 import TorchaoInt8  # noqa: E402
from zigpass.formats.torchao_intx import TorchaoIntx  # noqa: E402
from zigpass.formats.torchao_other import TorchaoOther  # noqa: E402
from zigpass.formats.verify import check_recovered  # noqa: E402
from zigpass.prepare import prepare  # noqa: E402
from zigpass.runtime import ZigpassError  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def quantized(config, n=96, k=128, dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, n, bias=bias, dtype=dtype)).eval()
    quantize_(model, config)
    return model


def recovered(model):
    recognizer = find_recognizer(model[0])
    assert recognizer.refusal(model[0]) is None
    weight = recognizer.recover(model[0]).weight
    check_recovered(recognizer, weight, recognizer.dequantize(model[0]))
    return recognizer, weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "stored"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 8), (6, 8), (7, 8), (8, 8)])
def test_intx(bits, stored, dtype):
    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(32))
    model = quantized(config, dtype=dtype)
    own = model[0].weight
    recognizer, weight = recovered(model)
    assert isinstance(recognizer, TorchaoIntx)
    assert weight.bits == stored
    assert torch.equal(weight.codes.int() - (1 << bits - 1), own.qdata.int())
    assert torch.equal(weight.scales.scale, own.scale)
    # The whole dequantization is exact before its last rounding, so it can be compared in the model's dtype too.
    assert torch.equal(weight.dequantize().to(dtype), own.dequantize())


def test_intx_per_row():
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0))
    _, weight = recovered(quantized(config))
    assert weight.scales.group_size == 128


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", [None, PerGroup(32)])
def test_int8(dtype, granularity):
    config = Int8WeightOnlyConfig() if granularity is None else Int8WeightOnlyConfig(granularity=granularity)
    model = quantized(config, dtype=dtype)
    own = model[0].weight
    recognizer, weight = recovered(model)
    assert isinstance(recognizer, TorchaoInt8)
    assert torch.equal(weight.codes.int() - 128, own.qdata.int())
    assert torch.equal(weight.dequantize().to(dtype), own.dequantize())


@pytest.mark.parametrize("config", [IntxWeightOnlyConfig(torch.int4, PerGroup(32)), Int8WeightOnlyConfig()])
def test_prepared_linears_compute_the_same(config):
    model, x = quantized(config, bias=True), torch.randn(1, 128)
    with torch.no_grad():
        expected = model(x)
        prepare(model, progress=False)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["TINYGEMM", "HQQ"])
def test_int4_for_cpus(dtype, algorithm):
    int4 = pytest.importorskip("torchao.prototype.quantization.int4", reason="this torchao has no CPU int4 tensor")
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

    config = int4.PrototypeInt4WeightOnlyConfig(32, Int4ChooseQParamsAlgorithm[algorithm], set_inductor_config=False)
    model = quantized(config, dtype=dtype)
    recognizer, weight = recovered(model)
    assert isinstance(recognizer, TorchaoInt4Opaque)
    scale, zero = (part.T.float().repeat_interleave(32, 1) for part in model[0].weight.scale_and_zero.unbind(-1))
    expected = (weight.codes.double() - 8) * scale.double() + zero.double()
    if dtype == torch.float32:  # the minimum is rounded to float32
        torch.testing.assert_close(weight.dequantize().double(), expected, rtol=0, atol=1e-7)
    else:
        assert torch.equal(weight.dequantize(), expected.float())


def test_int4_for_cpus_off_by_one_code_would_be_caught():
    int4 = pytest.importorskip("torchao.prototype.quantization.int4", reason="this torchao has no CPU int4 tensor")
    model = quantized(int4.PrototypeInt4WeightOnlyConfig(32, set_inductor_config=False))
    recognizer, weight = recovered(model)
    weight.codes[5, 7] ^= 1
    with pytest.raises(ZigpassError, match=r"1 of 12288 recovered weights differ .* first row 5, column 7"):
        check_recovered(recognizer, weight, recognizer.dequantize(model[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int4_plain_from_its_stored_layout(dtype):
    from torchao.quantization import Int4Tensor

    codes = torch.randint(-8, 8, (96, 128))
    scale, zero = (torch.rand(4, 96) * 0.1).to(dtype), torch.randn(4, 96).to(dtype)
    packed = ((codes[:, 1::2] << 4) | (codes[:, ::2] & 15)).to(torch.uint8).view(torch.int8)
    model = nn.Sequential(nn.Linear(128, 96, bias=False))
    model[0].weight = nn.Parameter(Int4Tensor(packed, scale, zero, [1, 32], torch.Size((96, 128))), False)
    recognizer, weight = recovered(model)
    assert isinstance(recognizer, TorchaoInt4Plain)
    expected = codes * scale.float().repeat_interleave(32, 0).T + zero.float().repeat_interleave(32, 0).T
    assert torch.equal(weight.dequantize(), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("activation_dtype", torch.float8_e4m3fn, "its activations are quantized to float8"),
        ("act_pre_scale", torch.ones(128), "multiplies its input by act_pre_scale"),
    ],
)
def test_int4_plain_refusals(name, value, message):
    from torchao.quantization import Int4Tensor

    parts = torch.zeros(96, 64, dtype=torch.int8), torch.ones(4, 96), torch.ones(4, 96)
    model = nn.Sequential(nn.Linear(128, 96, bias=False))
    tensor = Int4Tensor(*parts, [1, 32], torch.Size((96, 128)), **{name: value})
    model[0].weight = nn.Parameter(tensor, False)
    assert message in TorchaoInt4Plain().refusal(model[0])


def test_quantized_activations_are_refused():
    model = quantized(Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ZigpassError, match=r"0: torchao Int8WeightOnlyConfig: its activations are quantized too"):
        prepare(model, progress=False)
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig

    model = quantized(Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(32)))
    with pytest.raises(ZigpassError, match=r"0: torchao IntxWeightOnlyConfig: its activations are quantized too"):
        prepare(model, progress=False)


def test_input_factors_are_refused():
    model = quantized(Int8WeightOnlyConfig())
    model[0].weight.act_pre_scale = torch.ones(128)
    assert "act_pre_scale" in TorchaoInt8().refusal(model[0])


def test_other_torchao_tensors_are_refused_by_name():
    model = nn.Sequential(nn.Linear(128, 96, bias=False))
    fake = type("Float8Tensor", (torch.Tensor,), {"__module__": "torchao.somewhere"})
    model[0].weight = nn.Parameter(torch.zeros(96, 128).as_subclass(fake), False)
    assert isinstance(find_recognizer(model[0]), TorchaoOther)
    with pytest.raises(ZigpassError, match="0: torchao, other tensors: Float8Tensor: its weights are float8"):
        prepare(model, progress=False)


def tiled(codes):
    """int32 [N/8, K/128, 32, 4] word by word, as the definition of the tensor cores' tile reads.

    Row n of a tile belongs to lanes 4n to 4n+3. Of every 16 inputs lane t has 2(t % 4), the next one, and both plus 8;
    two such runs of 16 share a word: first the even inputs of both, then the odd ones.
    """
    n, k = codes.shape
    out = torch.zeros(n // 8, k // 128, 32, 4, dtype=torch.int64)
    for tile in range(n // 8):
        for step in range(k // 128):
            for lane in range(32):
                for word in range(4):
                    start = step * 128 + word * 32 + 2 * (lane % 4)
                    even = [start, start + 8, start + 16, start + 24]
                    for field, column in enumerate([*even, *(column + 1 for column in even)]):
                        out[tile, step, lane, word] |= int(codes[tile * 8 + lane // 4, column]) << (4 * field)
    return torch.where(out >= 1 << 31, out - (1 << 32), out).to(torch.int32)


def tile_packed(n, k, group_size, device="cpu"):
    """A linear of an `Int4TilePackedTo4dTensor` and the codes, scales and zeros in it."""
    from torchao.quantization import Int4TilePackedTo4dTensor

    generator = torch.Generator().manual_seed(0)
    rows, columns = -(-n // 8) * 8, -(-k // 1024) * 1024
    codes = torch.randint(0, 16, (rows, columns), generator=generator)
    scale_and_zero = (torch.rand(columns // group_size, rows, 2, generator=generator) * 0.1).bfloat16()
    parts = (part.to(device) for part in (tiled(codes), scale_and_zero))
    model = nn.Sequential(nn.Linear(k, n, bias=False))
    model[0].weight = nn.Parameter(Int4TilePackedTo4dTensor(*parts, [1, group_size], torch.Size((n, k))), False)
    return model, codes[:n, :k], scale_and_zero


def test_int4_tiles_are_taken_apart():
    model, codes, scale_and_zero = tile_packed(20, 1000, 32)
    weight = TorchaoInt4Tiled().recover(model[0]).weight
    assert torch.equal(weight.codes.long(), codes)
    scale, zero = (part.float()[:, :20].repeat_interleave(32, 0).T[:, :1000] for part in scale_and_zero.unbind(-1))
    torch.testing.assert_close(weight.dequantize(), (codes - 8) * scale + zero, rtol=0, atol=1e-6)


def test_int4_tiles_are_compared_on_cuda_only():
    model, _, _ = tile_packed(8, 128, 32)
    with pytest.raises(ZigpassError, match=r"0: torchao .*tile-packed.*the tensor is on cpu, where no kernel reads it"):
        prepare(model, progress=False)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("group_size", [32, 128])
def test_int4_tiles_of_torchao_on_cuda(group_size):
    """Packed by torch's own kernel: the order of the tiles, and what its product makes of them."""
    from torchao.quantization import Int4WeightOnlyConfig

    config = Int4WeightOnlyConfig(group_size=group_size, int4_packing_format="tile_packed_to_4d")
    model = nn.Sequential(nn.Linear(1024, 20, bias=False, dtype=torch.bfloat16, device="cuda"))  # torchao skips other K
    quantize_(model, config)
    recognizer, _ = recovered(model)
    assert isinstance(recognizer, TorchaoInt4Tiled)
    example, codes, _ = tile_packed(20, 1000, group_size, "cuda")
    assert torch.equal(recovered(example)[1].codes.long().cpu(), codes)
