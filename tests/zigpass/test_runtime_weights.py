"""Quantized models compiled without `prepare`: packed at run time, kept, and packed again when they change."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("torchao", reason="torchao is not installed")

from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)

from tests.models import SwiGlu, tiny_llama
from tests.passes.graphs import one_row
from tests.zigpass.test_traps import CountingBackend
from zigpass import runtime_weights
from zigpass.backend import ZigpassWarning
from zigpass.explain import explain
from zigpass.tools.exported import quantize_graph

INT4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
CONFIGS = {"int4": INT4, "int8": Int8WeightOnlyConfig(set_inductor_config=False)}
EAGER = {"inner": "eager"}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    runtime_weights.clear_cache()


def quantized_mlp(seed=0, config=INT4):
    torch.manual_seed(seed)
    mlp = SwiGlu(bias=True).eval()
    quantize_(mlp, config)
    return mlp


def assert_same(compiled, eager, x=None):
    x = one_row() if x is None else x
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inner", ["eager", "inductor"])
@pytest.mark.parametrize("name", CONFIGS)
def test_torchao_models_are_fused_without_prepare(name, inner, caplog):
    mlp = quantized_mlp(config=CONFIGS[name])
    compiled = torch.compile(mlp, backend="zigpass", fullgraph=True, options={"inner": inner})
    with caplog.at_level("INFO"):
        assert_same(compiled, mlp)
    assert "matched 1 gated_mlp" in caplog.text
    assert "gate_proj (torchao Int" in caplog.text
    assert "is packed at run time; zigpass.prepare packs it once" in caplog.text
    assert_same(compiled, mlp, torch.randn(1, 5, 64))
    assert len(runtime_weights._cache) == 3  # prefill and decode share what is packed


@pytest.mark.parametrize("kind", ["affine", "channel", "tensor"])
@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_graphs_of_pt2e_are_fused_without_prepare(kind, inner, caplog):
    graph = quantize_graph(torch.export.export(SwiGlu(bias=True).eval(), (one_row(),)).module(), one_row(), kind)
    with caplog.at_level("INFO"):
        assert_same(torch.compile(graph, backend="zigpass", fullgraph=True, options={"inner": inner}), graph)
    assert "matched 1 gated_mlp" in caplog.text


class Dequantizes(nn.Module):
    """Weights that the model's own code dequantizes."""

    def __init__(self):
        super().__init__()
        for name, n, k in (("gate", 96, 64), ("up", 96, 64), ("down", 64, 96)):
            self.register_buffer(f"{name}_codes", torch.randint(-8, 8, (n, k), dtype=torch.int8))
            self.register_buffer(f"{name}_scale", torch.rand(n, k // 32) * 0.02)
            self.register_buffer(f"{name}_zero", torch.randint(-3, 3, (n, k // 32), dtype=torch.int32))

    def weight(self, name):
        codes, scale, zero = (getattr(self, f"{name}_{part}") for part in ("codes", "scale", "zero"))
        return torch.ops.torchao.dequantize_affine(codes, [1, 32], scale, zero, torch.int8, -8, 7)

    def forward(self, x):
        gate, up = (F.linear(x, self.weight(name)) for name in ("gate", "up"))
        return F.linear(F.silu(gate) * up, self.weight("down"))


def test_dequantize_calls_in_the_code_of_a_model(caplog):
    model = Dequantizes()
    with caplog.at_level("INFO"):
        assert_same(torch.compile(model, backend="zigpass", fullgraph=True, options=EAGER), model)
    assert "matched 1 gated_mlp" in caplog.text
    report = explain(model, one_row())
    assert {row.kind for row in report.rows} == {"quantized"}
    assert {row.representation for row in report.rows} == {"torchao.dequantize_affine"}


def test_a_llama_decodes_as_before():
    from transformers import StaticCache

    model, tokens = tiny_llama(), torch.randint(3, 97, (1, 6))
    quantize_(model, INT4, lambda module, name: isinstance(module, nn.Linear) and name != "lm_head")
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options=EAGER)
    logits = []
    for call in (compiled, model):
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.inference_mode():
            call(tokens[:, :4], past_key_values=cache)
            steps = [call(tokens[:, at : at + 1], past_key_values=cache).logits for at in (4, 5)]
            logits.append(torch.cat(steps, 1))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_layers_that_share_a_graph_keep_their_own_weights(inner):
    layers, backend = [quantized_mlp(seed) for seed in range(3)], CountingBackend(inner)
    expected = [copy.deepcopy(layer) for layer in layers]
    for layer in layers:
        layer.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        for layer, eager in zip(layers, expected, strict=True):
            assert_same(layer, eager)
    assert backend.count == 1


def test_changed_weights_are_packed_again():
    mlp = quantized_mlp()
    compiled = torch.compile(mlp, backend="zigpass", options=EAGER)
    assert_same(compiled, mlp)
    with torch.no_grad():
        mlp.up_proj.weight.scale.mul_(2.0)  # in place
    assert_same(compiled, mlp)
    mlp.up_proj.weight.qdata.data = mlp.up_proj.weight.qdata.flip(0)  # behind autograd's back
    assert_same(compiled, mlp)
    mlp.load_state_dict(quantized_mlp(1).state_dict())
    assert_same(compiled, quantized_mlp(1))
    mlp.down_proj = quantized_mlp(2).down_proj  # a new module
    assert_same(compiled, mlp)


def test_packing_happens_once(monkeypatch):
    mlp, packed = quantized_mlp(), []
    right = runtime_weights._pack
    monkeypatch.setattr(runtime_weights, "_pack", lambda module: packed.append(module) or right(module))
    compiled = torch.compile(mlp, backend="zigpass", options=EAGER)
    for _ in range(3):
        assert_same(compiled, mlp)
    assert len(packed) == 3


def test_the_cache_keeps_nothing_alive():
    mlp = quantized_mlp()
    assert_same(torch.compile(mlp, backend="zigpass", options=EAGER), mlp)
    assert len(runtime_weights._cache) == 3
    mlp.up_proj = nn.Identity()
    gc.collect()
    assert len(runtime_weights._cache) == 2
    torch._dynamo.reset()
    assert not runtime_weights._cache


def float_reason(model, x):
    with pytest.warns(ZigpassWarning) as caught, torch.no_grad():
        out = torch.compile(model, backend="zigpass", options=EAGER)(x)
    (message,) = [str(item.message) for item in caught if issubclass(item.category, ZigpassWarning)]
    with torch.no_grad():
        torch.testing.assert_close(out, model(x), rtol=1e-5, atol=1e-6)
    return message


def test_quantized_activations_are_refused_and_the_model_runs_as_it_is():
    mlp = quantized_mlp(config=Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(32)))
    assert "not packed: gate_proj: its activations are quantized too" in float_reason(mlp, one_row())


def test_weights_that_are_arguments_are_refused():
    model = Dequantizes()

    class Takes(nn.Module):
        def forward(self, args):
            x, codes, scale, zero = args
            return F.linear(x, torch.ops.torchao.dequantize_affine(codes, [1, 32], scale, zero, torch.int8, -8, 7))

    args = (one_row(), model.gate_codes, model.gate_scale, model.gate_zero)
    assert "its tensors are not parameters or buffers of a module" in float_reason(Takes(), args)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = Dequantizes()
    assert "its tensors were made under torch.inference_mode()" in float_reason(model, one_row())


def test_switched_off_it_says_so():
    mlp = quantized_mlp()
    options = {**EAGER, "passes": {"pack_weight_leaves": False}}
    with pytest.warns(ZigpassWarning, match="found nothing to speed up in this graph"):
        assert_same(torch.compile(mlp, backend="zigpass", options=options), mlp)


def test_explain_says_what_prepare_saves():
    report = explain(quantized_mlp(), one_row())
    assert {row.kind for row in report.rows} == {"quantized"}
    for row in report.rows:
        assert row.note == (
            f"{row.name} is quantized (torchao IntxUnpackedToInt8Tensor), but not packed: torch.compile packs it when"
            " it runs, keeps both copies and has no threshold for it; zigpass.prepare packs it once"
        )
    saved = sum(row.num_bytes for row in report.rows)
    assert f"call zigpass.prepare, which packs once and frees their {saved / 1e6:.2f} MB" in str(report)
