"""What the report says about every linear: what holds it, bytes, the bound, and why it is not fused."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from tests.models import quantized_tiny_llama
from tests.passes import test_refusals
from tests.passes.graphs import one_row, packed_block
from zigpass.config import ZigzagConfig
from zigpass.explain import explain
from zigpass.linear import find_linears
from zigpass.quantize import quantize_
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites
from zigpass.tools.quantized_modules import GptqLinear, HqqLinear

TOKEN = torch.tensor([[5]])


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class LoraLayer(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return self.base_layer(x)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(3, 8, 64))
        self.router = nn.Module()
        self.router.weight = nn.Parameter(torch.randn(3, 64))

    def forward(self, x):
        return x @ self.down_proj.sum(0).t() + nn.functional.linear(x, self.router.weight).sum()


def unpacked_linears():
    """Linears that `prepare` or `quantize_` did not take, each for a reason of its own."""
    hooked, parametrized, offloaded, empty = (GptqLinear(16, 64) for _ in range(4))
    hooked.register_forward_pre_hook(lambda module, args: None)
    parametrized.fake = nn.Parameter(torch.ones(2))
    nn.utils.parametrize.register_parametrization(parametrized, "fake", nn.Identity())
    offloaded._hf_hook = object()
    empty.qweight = empty.qweight.to("meta")
    return {
        "plain": nn.Linear(64, 16),
        "doubled": Doubled(64, 16),
        "gptq": GptqLinear(16, 64),
        "hqq": HqqLinear(axis=0),
        "hooked": hooked,
        "parametrized": parametrized,
        "offloaded": offloaded,
        "lora": LoraLayer(GptqLinear(16, 64)),
        "float_lora": LoraLayer(nn.Linear(64, 16)),
        "empty": empty,
        "strange": type("QLinear", (nn.Module,), {"in_features": 64, "out_features": 16})(),
        "experts": Experts(),
    }


NOTES = {
    "plain": "not quantized; call zigpass.quantize_",
    "doubled": "Doubled is a subclass of nn.Linear, which may compute something else: quantize_ leaves it as it is",
    "gptq": "quantized, but not packed: call zigpass.prepare",
    "hqq": "its groups run across the outputs (axis=0)",
    "hooked": "it has 1 hook (",
    "parametrized": "it has parametrizations (fake), which would be lost; remove them first",
    "offloaded": "accelerate moves its weights in and out (_hf_hook); load the model on one device instead",
    "lora.base_layer": "it is wrapped by the adapter LoraLayer; merge it (merge_and_unload) or remove it first",
    "float_lora.base_layer": "it is wrapped by the adapter LoraLayer; merge it (merge_and_unload) or remove it first",
    "empty": "its weight has no data (device meta); load the weights first",
    "strange": "not a representation that zigpass knows; it stays as it is",
    "experts.down_proj": "3 experts in one parameter, of which the router picks some for each token: they run in float",
    "experts.router": "a weight that its module uses by itself, not through a linear that could be replaced",
    "packed": "not part of any captured graph",
}


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.packed = nn.Linear(64, 16)
        quantize_(self, ZigzagConfig(group_size=32), progress=False)
        for name, module in unpacked_linears().items():
            setattr(self, name, module)

    def forward(self, x):
        return self.plain(x) + self.doubled(x) + self.experts(x).sum()


def test_every_reason_that_lies_in_the_model():
    model = Mixed()
    rows = {row.name: row for row in explain(model, one_row()).rows}
    assert rows.keys() == NOTES.keys()
    for name, note in NOTES.items():
        assert note in rows[name].note, name
    kinds = {name: row.kind for name, row in rows.items()}
    assert kinds["packed"] == "unused"
    assert kinds["gptq"] == kinds["hooked"] == kinds["lora.base_layer"] == "quantized"
    assert kinds["plain"] == kinds["strange"] == kinds["experts.down_proj"] == "float"
    assert rows["gptq"].representation == "GPTQ (v1, v2; desc_act)"
    assert rows["experts.down_proj"].num_bytes == 3 * 8 * 64 * 4
    assert rows["experts.down_proj"].bytes_in_16_bit == 3 * 8 * 64 * 2
    assert (rows["experts.router"].n, rows["experts.router"].k) == (3, 64)


@pytest.mark.parametrize("name", test_refusals.CASES)
def test_every_reason_that_lies_in_the_graph(name):
    """The sentences of the passes come through, at the rows of the layers they are about."""
    body, sizes, reason = test_refusals.CASES[name]
    report = explain(packed_block(body, **sizes), one_row())
    assert any(reason in near_miss.reason for near_miss in report.near_misses)
    assert any(reason in row.note for row in report.rows)
    assert reason in str(report)


def test_at_least_twenty_refusals_are_asserted():
    in_graph = {reason for _, _, reason in test_refusals.CASES.values()}
    assert len(in_graph) >= 15
    assert len(in_graph | set(NOTES.values())) >= 28


def test_bytes_and_bound_of_a_row():
    model = quantized_tiny_llama()
    report = explain(model, TOKEN, sparsity=0.5)
    rows = {row.name: row for row in report.rows}
    row, linear = rows["model.layers.0.mlp.down_proj"], dict(find_linears(model))["model.layers.0.mlp.down_proj"]
    codes, *others = (tensor.numel() * tensor.element_size() for tensor in linear.weight_tensors)
    assert (row.site, row.representation) == ("model.layers.0.mlp.mlp_mid", "zigzag 4 bit, 32 inputs")
    assert row.bytes_in_16_bit == 2 * 64 * 96
    assert row.num_bytes == codes + sum(others)
    assert row.active_bytes == codes // 2 + sum(others)
    assert row.bound == row.num_bytes / row.active_bytes
    head = rows["lm_head"]
    assert (head.site, head.num_bytes, head.active_bytes) == ("", 64 * 97 * 4, 64 * 97 * 4)
    assert head.note == "the output head: quantize_ leaves it in float unless filter_fn asks for it"


def test_totals_in_all_three_forms():
    report = explain(quantized_tiny_llama(), TOKEN, sparsity=0.5)
    packed = [row for row in report.rows if row.kind != "float"]
    assert report.active_bytes == sum(row.active_bytes for row in packed)
    assert report.bound == report.packed_bytes / report.active_bytes
    assert f"{report.bound:.2f}x fewer than dense" in str(report)
    plain = json.loads(report.to_json())
    assert plain == report.to_dict()
    assert (plain["active_bytes"], plain["bound"]) == (report.active_bytes, report.bound)
    expected = {field.name for field in dataclasses.fields(packed[0])} | {"bytes_in_16_bit", "bound"}
    assert plain["linears"][0].keys() == expected
    assert len(plain["linears"]) == len(report.rows) == 15


def test_a_site_that_is_never_sparse_reads_everything():
    block = packed_block(lambda m, x: m.down_proj(m.up_proj(x)))
    block.down_proj.site = None
    rows = {row.name: row for row in explain(block, one_row(), sparsity=0.5).rows}
    assert (rows["down_proj"].kind, rows["down_proj"].bound) == ("dense_linear", 1.0)
    assert rows["up_proj"].bound > 1.2


def test_sparsity_comes_from_the_calibration_unless_it_is_given():
    model = quantized_tiny_llama()
    unknown = explain(model, TOKEN)
    assert unknown.active_bytes is None
    assert unknown.bound is None
    assert "bytes read per token are not known: calibrate the model, or pass sparsity= to explain" in str(unknown)
    for site in find_sites(model).values():
        site.set_threshold(0.1, target_sparsity=0.5)
    assert explain(model, TOKEN).rows == explain(model, TOKEN, sparsity=0.5).rows
    assert explain(model, TOKEN, sparsity=0.0).bound == 1.0
    site.set_threshold(0.2)  # by hand: nobody knows what share that is
    assert explain(model, TOKEN).active_bytes is None
    site.set_threshold(0.1)
    assert explain(model, TOKEN).active_bytes is not None


def test_calibration_is_where_targets_come_from():
    from zigpass.calibrate import calibrate

    model = quantized_tiny_llama(layers=1)
    thresholds = calibrate(model, torch.randint(3, 97, (1024,)), target_sparsity=0.4, window=64, progress=False)
    for name, site in find_sites(model).items():
        assert site.target_sparsity == thresholds.sites[name].target_sparsity
    assert explain(model, TOKEN).bound > 1.1


def test_quantized_layers_that_are_not_packed_are_counted():
    text = str(explain(Mixed(), one_row()))
    assert "quantized but not packed: 7 linears; call zigpass.prepare, which packs once and frees their 0.01 MB" in text


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ZigpassError, match="sparsity must be at least 0 and below 1, got"):
        explain(nn.Linear(4, 4), torch.ones(1, 4), sparsity=sparsity)
