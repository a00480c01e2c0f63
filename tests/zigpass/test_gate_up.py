"""Gate and up that a model keeps in one linear, and what else is done where a linear is replaced."""

import pytest
import torch
from torch import nn

from zigpass.config import ZigzagConfig
from zigpass.float_linears import is_float_linear
from zigpass.gate_up import GateUp
from zigpass.linear import ZigzagLinear, find_linears
from zigpass.load_packed import from_pretrained
from zigpass.prepare import prepare
from zigpass.quantize import quantize_
from zigpass.quantizers import quantize_weight
from zigpass.replace import SiteRegistry
from zigpass.save import save_pretrained
from zigpass.sites import find_sites, site_kind, site_name
from zigpass.tools.quantized_modules import AwqLinear, GptqLinear
from zigpass.tools.tiny_models import tiny_model


class Mlp(nn.Module):
    def __init__(self, linear, middle, hidden=64):
        super().__init__()
        self.gate_up_proj = linear(2 * middle, hidden)
        self.down_proj = linear(hidden, middle)


@pytest.mark.parametrize("middle", [96, 200, 256])
@pytest.mark.parametrize("make", [GptqLinear, AwqLinear])
def test_preparing_cuts_one_weight_in_two_without_changing_a_number(make, middle):
    model = nn.ModuleDict({"gate_up_proj": make(2 * middle, 64)})
    whole = nn.ModuleDict({"proj": model.gate_up_proj})  # the same module under a name that is not cut
    expected = prepare(whole, progress=False)["proj"].unpack().dequantize()
    prepare(model, progress=False)
    halves = model["gate_up_proj"]
    assert isinstance(halves, GateUp)
    assert torch.equal(torch.cat([halves.gate.unpack().dequantize(), halves.up.unpack().dequantize()]), expected)
    assert halves.gate.site is halves.up.site
    x = torch.randn(3, 64)
    torch.testing.assert_close(halves(x), whole["proj"](x))


def test_act_order_stays_with_both_halves():
    model = nn.Module()
    model.gate_up_proj = GptqLinear(192, 64, act_order=True)
    expected = prepare(nn.ModuleDict({"proj": GptqLinear(192, 64, act_order=True)}), progress=False)["proj"]
    prepare(model, progress=False)
    assert model.gate_up_proj.up.layout.permuted
    x = torch.randn(1, 64)
    torch.testing.assert_close(model.gate_up_proj(x), expected(x))


def test_a_linear_in_two_places_is_cut_once():
    model = nn.ModuleDict({"a": Mlp(GptqLinear, 96), "b": Mlp(GptqLinear, 96)})
    model["b"].gate_up_proj = model["a"].gate_up_proj
    prepare(model, progress=False)
    assert isinstance(model["a"].gate_up_proj, GateUp)
    assert model["b"].gate_up_proj is model["a"].gate_up_proj


@pytest.mark.parametrize("scale_axis", ["in", "out"])
@pytest.mark.parametrize("bias", [False, True])
def test_quantizing_gives_two_weights(scale_axis, bias):
    torch.manual_seed(0)
    model = Mlp(lambda n, k: nn.Linear(k, n, bias), 104)
    config = ZigzagConfig(group_size=32, scale_axis=scale_axis)
    weight, rows = model.gate_up_proj.weight, []
    for half in weight.detach().chunk(2):
        rows.append(quantize_weight(half, config).dequantize())  # noqa: PERF401
    given = model.gate_up_proj.bias
    quantize_(model, config, progress=False)
    x = torch.randn(1, 64)
    torch.testing.assert_close(
        model.gate_up_proj(x), nn.functional.linear(x, torch.cat(rows), given), atol=1e-5, rtol=1e-5
    )
    assert [name for name, _ in find_linears(model)] == ["gate_up_proj.gate", "gate_up_proj.up", "down_proj"]


def test_a_weight_whose_rows_share_scales_stays_whole():
    """Packed in columns by somebody else: a block of rows with one scale may lie across the seam."""
    model = nn.Module()
    model.gate_up_proj = nn.Linear(64, 200)
    holder = nn.ModuleDict({"proj": nn.Linear(64, 200)})
    packed = quantize_(holder, ZigzagConfig(scale_axis="out"), progress=False)["proj"]
    from zigpass.replace import replace_module

    replace_module(model, "gate_up_proj", packed)
    assert model.gate_up_proj is packed


def test_an_odd_number_of_rows_is_no_gate_and_up():
    model = nn.Module()
    model.gate_up_proj = nn.Linear(64, 33)
    quantize_(model, ZigzagConfig(group_size=32), progress=False)
    assert isinstance(model.gate_up_proj, ZigzagLinear)


def test_saved_halves_are_loaded_as_halves(tmp_path):
    model = quantize_(tiny_model("Phi3"), ZigzagConfig(group_size=32), progress=False)
    for index, site in enumerate(find_sites(model).values()):
        site.set_threshold(0.01 * index)
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert isinstance(again.model.layers[1].mlp.gate_up_proj, GateUp)
    tokens = torch.tensor([[5]])
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_conv1d_is_a_linear_with_its_weight_transposed():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.ModuleDict({"c_fc": Conv1D(96, 64), "named_alike": type("Conv1D", (nn.Module,), {})()})
    nn.init.normal_(model["c_fc"].bias)
    weight, bias = model["c_fc"].weight.detach(), model["c_fc"].bias.detach()
    assert not is_float_linear(model["named_alike"])
    config = ZigzagConfig(group_size=32)
    quantize_(model, config, progress=False)
    expected = quantize_weight(weight.t().contiguous(), config)
    packed = model["c_fc"].unpack()
    assert torch.equal(packed.codes, expected.codes)
    assert torch.equal(packed.dequantize(), expected.dequantize())
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(
        model["c_fc"](x), nn.functional.linear(x, expected.dequantize(), bias), rtol=1e-5, atol=1e-5
    )


def test_gptq_reads_the_inputs_of_conv1d():
    model = tiny_model("GPT2")
    config = ZigzagConfig(group_size=32, method="gptq")
    quantize_(model, config, calibration=torch.randint(3, 64, (128,)), window=16, num_windows=2, progress=False)
    assert len(list(find_linears(model))) == 8


def test_a_subclass_that_may_compute_something_else_is_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = quantize_(nn.ModuleDict({"a": Scaled(64, 64), "b": nn.Linear(64, 64)}), progress=False)
    assert isinstance(model["a"], Scaled)
    assert isinstance(model["b"], ZigzagLinear)


@pytest.mark.parametrize(
    ("name", "kind", "site"),
    [
        ("h.0.attn.c_proj", "attn_out", "h.0.attn.attn_out"),
        ("h.0.mlp.c_proj", "mlp_mid", "h.0.mlp.mlp_mid"),
        ("h.0.mlp.c_fc", "mlp_in", "h.0.mlp.mlp_in"),
        ("h.0.attn.c_attn", "attn_in", "h.0.attn.attn_in"),
        ("h.0.self_attention.dense", "attn_out", "h.0.self_attention.attn_out"),
        ("h.0.output.dense", "other", "h.0.output.dense"),
        ("h.0.self_attention.query_key_value", "attn_in", "h.0.self_attention.attn_in"),
        ("layers.0.fc1", "mlp_in", "layers.0.mlp_in"),
        ("layers.0.fc2", "mlp_mid", "layers.0.mlp_mid"),
        ("layers.0.self_attn.out_proj", "attn_out", "layers.0.self_attn.attn_out"),
        ("layers.0.mixer.out_proj", "other", "layers.0.mixer.out_proj"),
        ("layers.0.encoder_attn.k_proj", "other", "layers.0.encoder_attn.k_proj"),
        ("layers.0.encoder_attn.q_proj", "other", "layers.0.encoder_attn.q_proj"),
        ("layers.0.mlp.shared_expert_gate", "other", "layers.0.mlp.shared_expert_gate"),
        ("c_fc", "mlp_in", "mlp_in"),
    ],
)
def test_names_of_sites(name, kind, site):
    assert (site_kind(name), site_name(name)) == (kind, site)


def test_names_that_promise_one_input_but_have_two_sizes_do_not_share():
    registry = SiteRegistry(nn.Module())
    first, second = registry.site_for("mlp.up_proj", 64), registry.site_for("mlp.gate_proj", 32)
    assert (second.name, second.kind, second.features) == ("mlp.gate_proj", "other", 32)
    assert registry.site_for("mlp.up_proj", 64) is first
    assert registry.site_for("mlp.gate_proj", 32) is second
