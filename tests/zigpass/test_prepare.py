"""What `prepare` does to a model, whatever the representation of its linears."""

import logging

import pytest
import torch
from torch import nn

from tests.models import tiny_llama
from zigpass.linear import ZigzagLinear, find_linears
from zigpass.prepare import prepare, survey
from zigpass.replace import replace_module
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites
from zigpass.tools.quantized_modules import AwqLinear, GptqLinear, HqqLinear


class Mlp(nn.Module):
    """A SwiGLU MLP of quantized linears."""

    def __init__(self, make=GptqLinear, **settings):
        super().__init__()
        self.gate_proj = make(96, 64, seed=1, **settings)
        self.up_proj = make(96, 64, seed=2, **settings)
        self.down_proj = make(64, 96, seed=3, **settings)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 64)
        self.mlp = Mlp()
        self.lm_head = nn.Linear(64, 16, bias=False)
        self.lm_head.weight = self.embed_tokens.weight


@pytest.mark.parametrize("make", [GptqLinear, AwqLinear, HqqLinear])
def test_the_prepared_model_computes_what_the_original_does(make):
    model, x = Mlp(make).eval(), torch.randn(3, 64)
    with torch.no_grad():
        expected = model(x)
        assert prepare(model, progress=False) is model
        # The modules round their weights to fp16 on the way, the packed ones do not.
        assert (model(x) - expected).norm() / expected.norm() < 2e-3
    assert len(list(find_linears(model))) == 3
    assert not model.up_proj.training


def test_linears_that_read_one_activation_share_its_site():
    model = prepare(Mlp(), progress=False)
    assert model.gate_proj.site is model.up_proj.site
    assert list(find_sites(model)) == ["mlp_in", "mlp_mid"]


def test_a_quantized_output_head_is_packed_and_never_sparse():
    model = nn.ModuleDict({"mlp": Mlp(), "lm_head": GptqLinear(48, 64)})
    prepare(model, progress=False)
    assert isinstance(model["lm_head"], ZigzagLinear)
    assert model["lm_head"].site is None


def test_plain_linears_and_tied_embeddings_stay_and_are_listed(caplog):
    model = Tied()
    with caplog.at_level(logging.INFO, "zigpass.prepare"):
        prepare(model, progress=False)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert caplog.messages == ["lm_head (Linear): not quantized; call zigpass.quantize_"]


def test_survey_says_what_would_happen_and_changes_nothing():
    model = Tied()
    model.strange = type("QLinear", (nn.Module,), {"in_features": 4, "out_features": 4})()
    found = {item.name: (item.representation, item.reason) for item in survey(model)}
    assert found == {
        "mlp.gate_proj": ("GPTQ (v1, v2; desc_act)", None),
        "mlp.up_proj": ("GPTQ (v1, v2; desc_act)", None),
        "mlp.down_proj": ("GPTQ (v1, v2; desc_act)", None),
        "lm_head": ("Linear", "not quantized; call zigpass.quantize_"),
        "strange": ("QLinear", "not a representation that zigpass knows; it stays as it is"),
    }
    assert isinstance(model.mlp.up_proj, GptqLinear)


def test_filter_leaves_layers_as_they_are(caplog):
    model = Mlp()
    with caplog.at_level(logging.INFO, "zigpass.prepare"):
        prepare(model, progress=False, filter_fn=lambda module, name: name != "down_proj")
    assert isinstance(model.down_proj, GptqLinear)
    assert caplog.messages == ["down_proj (GPTQ (v1, v2; desc_act)): left as it is by filter_fn"]


def test_a_module_in_two_places_stays_one():
    model = nn.ModuleDict({"a": Mlp(), "b": Mlp()})
    model["b"].up_proj = model["a"].up_proj
    prepare(model, progress=False)
    assert model["b"].up_proj is model["a"].up_proj
    assert isinstance(model["b"].up_proj, ZigzagLinear)


def test_preparing_twice_changes_nothing():
    model = prepare(Mlp(), progress=False)
    before = model.up_proj
    assert prepare(model, progress=False).up_proj is before


def test_all_refusals_come_in_one_error_and_the_model_stays_untouched():
    model = nn.ModuleDict({"a": Mlp(), "b": HqqLinear(axis=0), "c": Mlp()})
    model["a"].up_proj.register_forward_hook(lambda module, args, output: output)
    model["a"].gate_proj.register_forward_pre_hook(lambda module, args: None)
    model["c"].up_proj.qweight = model["c"].up_proj.qweight.to("meta")
    with pytest.raises(ZigpassError) as caught:
        prepare(model, progress=False)
    message = str(caught.value)
    assert "a.up_proj: GPTQ (v1, v2; desc_act): it has 1 hook (" in message
    assert "a.gate_proj: GPTQ (v1, v2; desc_act): it has 1 hook (" in message
    assert "b: HQQ (axis=1): its groups run across the outputs (axis=0)" in message
    assert "c.up_proj: GPTQ (v1, v2; desc_act): its weight has no data (device meta)" in message
    assert "leave them out with filter_fn" in message
    assert not list(find_linears(model))


def test_parametrized_and_offloaded_linears_are_refused():
    parametrized, offloaded = Mlp(), Mlp()
    parametrized.up_proj.fake = nn.Parameter(torch.ones(2))
    nn.utils.parametrize.register_parametrization(parametrized.up_proj, "fake", nn.Identity())
    with pytest.raises(ZigpassError, match=r"up_proj: .*: it has parametrizations \(fake\)"):
        prepare(parametrized, progress=False)
    offloaded.up_proj._hf_hook = object()
    with pytest.raises(ZigpassError, match=r"up_proj: .*: accelerate moves its weights in and out"):
        prepare(offloaded, progress=False)


class LoraLayer(nn.Module):
    """Shaped like peft's wrapper of a linear."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.lora_A = nn.ModuleDict({"default": nn.Linear(64, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, 96, bias=False)})


def test_linears_under_an_adapter_are_refused():
    model = Mlp()
    model.up_proj = LoraLayer(model.up_proj)
    with pytest.raises(
        ZigpassError, match=r"up_proj.base_layer: GPTQ .*: it is wrapped by the adapter LoraLayer; merge it"
    ):
        prepare(model, progress=False)
    prepare(model, progress=False, filter_fn=lambda module, name: "base_layer" not in name)
    assert isinstance(model.up_proj.base_layer, GptqLinear)


def test_codes_that_give_other_numbers_are_caught_and_named(monkeypatch):
    model = Mlp(AwqLinear)
    monkeypatch.setattr("zigpass.formats.awq.NIBBLE_OF_OUTPUT", (0, 1, 2, 3, 4, 5, 6, 7))
    with pytest.raises(ZigpassError) as caught:
        prepare(model, progress=False)
    message = str(caught.value)
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert f"{name}: AWQ (GEMM packing): " in message
    assert "of 6144 recovered weights differ from the module's own dequantization, first row 1, column 0: " in message
    assert "nothing is changed; leave them out with filter_fn" in message
    assert not list(find_linears(model))


def test_a_module_of_another_meaning_is_caught_before_anything_is_changed():
    """The same tensors, but this module multiplies its output by a number."""
    model, x = Mlp(), torch.randn(3, 64)
    with torch.no_grad():
        expected = model(x)
        forward = model.down_proj.forward
        model.down_proj.forward = lambda x: forward(x) * 1.001
        with pytest.raises(
            ZigpassError, match=r"nothing is changed; .*\n  - down_proj: GPTQ .* recovered weights differ"
        ):
            prepare(model, progress=False)
        assert not list(find_linears(model))
        model.down_proj.forward = forward
        assert torch.equal(model(x), expected)
        prepare(model, progress=False)
    assert len(list(find_linears(model))) == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "2 Linear: not quantized; call zigpass.quantize_"),
        (nn.ReLU(), "ReLU has no linears"),
        (GptqLinear(), "wrap it in a module"),
    ],
)
def test_models_with_nothing_to_prepare(model, message):
    with pytest.raises(ZigpassError, match=message):
        prepare(model, progress=False)


def test_a_filter_that_leaves_nothing_is_an_error():
    with pytest.raises(ZigpassError, match="filter_fn leaves none of the 3 linears of Mlp"):
        prepare(Mlp(), progress=False, filter_fn=lambda module, name: False)


def test_a_transformers_model_quantized_by_torchao_keeps_its_logits():
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model, ids = tiny_llama(), torch.arange(9)[None]
    config = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(32))
    torchao.quantize_(model, config, lambda module, name: isinstance(module, nn.Linear) and name != "lm_head")
    with torch.no_grad():
        expected = [model(ids).logits, model(ids[:, :1]).logits]
        prepare(model, progress=False)
        actual = [model(ids).logits, model(ids[:, :1]).logits]
    assert len(list(find_linears(model))) == 2 * 7
    for mine, own in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-5)


def test_a_model_with_act_order_compiles_to_fused_ops():
    from zigpass.explain import explain

    model = tiny_llama(layers=1)
    for name, module in list(model.model.layers.named_modules()):
        if type(module) is nn.Linear:
            n, k = module.weight.shape
            replace_module(model.model.layers, name, GptqLinear(n, k, act_order=True, seed=len(name)))
    prepare(model, progress=False)
    for site in find_sites(model).values():
        site.set_threshold(0.01)
    one = torch.tensor([[5]])
    assert explain(model, one).kinds == {"gated_mlp": 1, "qkv": 1, "linear": 1}
    torch._dynamo.reset()
    fast = torch.compile(model, backend="zigpass", options={"inner": "eager"})
    with torch.inference_mode():
        torch.testing.assert_close(fast(one).logits, model(one).logits, rtol=1e-4, atol=1e-4)
