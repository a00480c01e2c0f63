import logging

import pytest
import torch
from torch import nn

from tests.models import SwiGlu, quantized_tiny_llama, tiny_llama
from zigpass.config import ZigzagConfig
from zigpass.linear import ZigzagLinear, find_linears
from zigpass.quantize import quantize_
from zigpass.runtime import ZigpassError


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_every_linear_but_the_head_is_replaced(scale_axis):
    model = quantize_(tiny_llama(), ZigzagConfig(group_size=32, scale_axis=scale_axis), progress=False)
    assert len(list(find_linears(model))) == 2 * 7
    assert type(model.lm_head) is nn.Linear


def test_the_result_is_close_to_the_float_model():
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = tiny_llama()(ids).logits
        actual = quantized_tiny_llama()(ids).logits
    assert (actual - expected).norm() / expected.norm() < 0.15


def test_bias_and_training_flag_are_kept():
    model = SwiGlu(bias=True).eval()
    bias = model.up_proj.bias.detach().clone()
    quantize_(model, ZigzagConfig(group_size=32), progress=False)
    assert torch.equal(model.up_proj.bias, bias)
    assert not model.up_proj.training


def test_filter_chooses_layers():
    model = quantize_(tiny_llama(), filter_fn=lambda module, name: name.endswith("down_proj"), progress=False)
    assert [name for name, _ in find_linears(model)] == [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]


def test_overrides_change_and_leave_out_layers():
    overrides = {"*.mlp.*": ZigzagConfig(bits=8, group_size=32), "*.1.mlp.up_proj": None}
    model = quantize_(tiny_llama(), ZigzagConfig(group_size=64), overrides=overrides, progress=False)
    linears = dict(find_linears(model))
    assert linears["model.layers.0.mlp.up_proj"].layout.bits == 8
    assert linears["model.layers.0.self_attn.q_proj"].layout.group_size == 64
    assert "model.layers.1.mlp.up_proj" not in linears


def test_an_override_that_fits_nothing_names_the_nearest_layer():
    with pytest.raises(ZigpassError, match="'down_prj' fits no linear layer; the nearest name is 'down_proj'"):
        quantize_(SwiGlu(), overrides={"down_prj": None}, progress=False)


def test_short_last_group_is_said(caplog):
    with caplog.at_level(logging.WARNING, "zigpass.quantize"):
        quantize_(SwiGlu(hidden=64, middle=96), ZigzagConfig(group_size=64), progress=False)
    assert caplog.messages == ["group_size 64 does not divide K=96 in 1 layers: their last group has 32 inputs"]


def test_all_failures_come_in_one_error_and_the_model_stays_untouched():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(0, 8), nn.Linear(8, 0), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[1, 1] = torch.nan
        model[0].weight[2, 2] = torch.inf
    model[1].double()
    with pytest.raises(ZigpassError) as caught:
        quantize_(model, progress=False)
    message = str(caught.value)
    assert "0: 2 of its 64 weights are NaN or infinite" in message
    assert "1: its weight has dtype torch.float64" in message
    assert "2: its weight is empty, N=8, K=0" in message
    assert "3: its weight is empty, N=0, K=8" in message
    assert "overrides={name: None}" in message
    assert all(type(module) is nn.Linear for module in model)


def test_a_scale_that_does_not_fit_names_the_layer():
    model = SwiGlu()
    with torch.no_grad():
        model.up_proj.weight.mul_(1e8)
    with pytest.raises(ZigpassError, match=r"^up_proj: a scale does not fit float16"):
        quantize_(model, progress=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "ReLU has no nn.Linear layers"),
        (nn.Linear(8, 8), "wrap it in a module"),
        (nn.Sequential(nn.Linear(8, 8, device="meta")), "0: its weight has no data"),
    ],
)
def test_models_without_usable_linears(model, message):
    with pytest.raises(ZigpassError, match=message):
        quantize_(model, progress=False)


def test_nothing_chosen_is_an_error():
    with pytest.raises(ZigpassError, match="leave none of the 3 linear layers"):
        quantize_(SwiGlu(), filter_fn=lambda module, name: False, progress=False)


def test_subclasses_of_linear_are_left_alone():
    class Adapter(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Adapter(8, 8))
    quantize_(model, progress=False)
    assert type(model[0]) is ZigzagLinear
    assert type(model[1]) is Adapter


class LoraLayer(nn.Module):
    """Shaped like peft's wrapper of a linear."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 4, bias=False)})

    def forward(self, x):
        return self.base_layer(x)


def test_linears_that_would_lose_something_are_refused_before_anything_is_changed():
    model = nn.ModuleDict({"lora": SwiGlu(), "hooked": SwiGlu(), "offloaded": SwiGlu()})
    model["lora"].up_proj = LoraLayer(model["lora"].up_proj)
    model["hooked"].down_proj.register_forward_hook(lambda module, args, output: output * 2)
    model["offloaded"].up_proj._hf_hook = object()
    with pytest.raises(ZigpassError) as caught:
        quantize_(model, ZigzagConfig(group_size=32), progress=False)
    message = str(caught.value)
    assert "lora.up_proj.base_layer: it is wrapped by the adapter LoraLayer; merge it (merge_and_unload)" in message
    assert "lora.up_proj.lora_A.default: it is part of the adapter LoraLayer; merge it" in message
    assert "hooked.down_proj: it has 1 hook (" in message
    assert "offloaded.up_proj: accelerate moves its weights in and out" in message
    assert not list(find_linears(model))
    left_out = ("lora.up_proj", "hooked.down_proj", "offloaded.up_proj")
    quantize_(model, filter_fn=lambda module, name: not name.startswith(left_out), progress=False)
    assert len(list(find_linears(model))) == 3 * 3 - 3
    assert type(model["lora"].up_proj.base_layer) is nn.Linear


def test_adapters_of_peft_are_refused():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["up_proj"], r=4), SwiGlu())
    with pytest.raises(ZigpassError, match=r"up_proj.base_layer: it is wrapped by the adapter .*; merge it"):
        quantize_(model, progress=False)
