"""Checkpoint folders written here from the formats' definitions, loaded without any quantization library."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models import tiny_llama
from zigpass.linear import find_linears
from zigpass.load_checkpoint import load_checkpoint
from zigpass.runtime import ZigpassError
from zigpass.tools.quantized_modules import AWQ_ORDER, pack_along

GROUP = 32


def quantize(weight):
    """codes, zeros and fp16 scales of a float matrix, round to nearest."""
    runs = weight.reshape(weight.shape[0], -1, GROUP)
    scale = ((runs.amax(-1) - runs.amin(-1)) / 15).half()
    zeros = (-runs.amin(-1) / scale.float()).round().clamp(1, 15).long()
    codes = (runs / scale.float()[..., None] + zeros[..., None]).round().clamp(0, 15).long().reshape(weight.shape)
    return codes, zeros, scale


def tensors_of(method, weight, act_order):
    """The tensors of one linear, and the float32 weight they stand for."""
    k = weight.shape[1]
    group = torch.arange(k) // GROUP
    if act_order:
        group = group[torch.randperm(k)]
        order = group.argsort(stable=True)
        codes, zeros, scale = quantize(weight[:, order])
        codes = codes[:, order.argsort()]
    else:
        codes, zeros, scale = quantize(weight)
    expected = scale.float()[:, group] * (codes - zeros[:, group])
    if method == "awq":
        packed = {"qweight": pack_along(codes.T, 1, 4, AWQ_ORDER), "qzeros": pack_along(zeros.T, 1, 4, AWQ_ORDER)}
        return {**packed, "scales": scale.T.contiguous()}, expected
    if method.startswith("gptq"):
        stored = zeros if method == "gptq_v2" else zeros - 1
        packed = {"qweight": pack_along(codes.T, 0, 4), "qzeros": pack_along(stored.T, 1, 4)}
        return {**packed, "scales": scale.T.contiguous(), "g_idx": group.to(torch.int32)}, expected
    packed = {"weight_packed": pack_along(codes, 1, 4), "weight_zero_point": pack_along(zeros, 0, 4)}
    return {**packed, "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}, expected


SETTINGS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}},
    },
}


def write(folder, method, act_order=False, shards=1):
    """A quantized tiny Llama; returns the model with the weights that the files stand for."""
    torch.manual_seed(0)
    model = tiny_llama()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name != "lm_head":
            parts, expected = tensors_of(method, module.weight.data, act_order)
            module.weight.data = expected
            del state[f"{name}.weight"]
            state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    config = {**model.config.to_dict(), "quantization_config": SETTINGS[method], "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return model
    index = {}
    for shard in range(shards):
        part = dict(list(state.items())[shard::shards])
        save_file(part, folder / f"part{shard}.safetensors")
        index |= dict.fromkeys(part, f"part{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return model


@pytest.mark.parametrize(
    ("method", "act_order"),
    [("gptq", False), ("gptq", True), ("gptq_v2", True), ("awq", False), ("compressed-tensors", False)],
)
def test_weights_are_those_that_the_files_stand_for_bit_for_bit(tmp_path, method, act_order):
    expected = write(tmp_path, method, act_order)
    model = load_checkpoint(tmp_path, progress=False)
    linears = dict(find_linears(model))
    assert len(linears) == 2 * 7
    for name, linear in linears.items():
        assert torch.equal(linear.unpack().dequantize(), expected.get_submodule(name).weight), name
        assert linear.layout.permuted == act_order
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)
    assert not model.training


def test_several_files_and_another_dtype(tmp_path):
    write(tmp_path, "awq", shards=3)
    model = load_checkpoint(tmp_path, dtype=torch.bfloat16, progress=False)
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.scale.dtype == torch.float16
    assert model.model.layers[0].mlp.up_proj.site is model.model.layers[0].mlp.gate_proj.site


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("gptq", {"bits": 3}, "its codes have 3 bits"),
        ("gptq", {"quant_method": "aqlm"}, "quant_method is 'aqlm'; checkpoints are read of compressed-tensors, gptq"),
        ("awq", {"version": "gemv"}, "it has 4 bits in the packing 'gemv'"),
        ("compressed-tensors", {"format": "nvfp4-pack-quantized"}, "the format is 'nvfp4-pack-quantized'"),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 8}}}},
            "its activations are quantized too",
        ),
        (
            "compressed-tensors",
            {"config_groups": {"a": {"weights": {"num_bits": 4}}, "b": {"weights": {"num_bits": 8}}}},
            r"its groups have codes of \[4, 8\] bits",
        ),
    ],
)
def test_settings_that_are_not_relaid_are_named(tmp_path, method, change, message):
    write(tmp_path, method)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(ZigpassError, match=message):
        load_checkpoint(tmp_path, progress=False)


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop(f"{UP}.qzeros"), f"{UP}: the files have no tensor 'qzeros'"),
        (lambda state: state.pop("model.norm.weight"), "lack tensors that LlamaForCausalLM needs:\n  - model.norm"),
        (lambda state: state.update(stray=torch.ones(1)), "stray: LlamaForCausalLM has no such tensor"),
        (lambda state: state.update({"a.b.qweight": torch.ones(1)}), "a.b: LlamaForCausalLM has no such linear"),
        (lambda state: state[f"{UP}.scales"].fill_(torch.nan), f"{UP}: 192 of its 192 scales are NaN"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, edit, message):
    write(tmp_path, "awq")
    state = load_file(tmp_path / "model.safetensors")
    edit(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ZigpassError, match=message):
        load_checkpoint(tmp_path, progress=False)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ZigpassError, match=r"config.json: no such file"):
        load_checkpoint(tmp_path)
    write(tmp_path, "awq")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ZigpassError, match=r"model.safetensors: truncated or not a safetensors file"):
        load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(ZigpassError, match=r"model.safetensors: no such file"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_is_not_quantized_is_named(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(ZigpassError, match="no quantization_config; load the model with transformers"):
        load_checkpoint(tmp_path)
