"""`prepare` on graph modules: what PT2E and `torch.export` make of a model."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchao", reason="torchao is not installed")

from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
from torchao.utils import unwrap_tensor_subclass

from tests.models import SwiGlu, tiny_llama
from tests.passes.graphs import one_row
from zigpass import passes
from zigpass.explain import explain
from zigpass.formats import affine
from zigpass.linear import ZigzagLinear, find_linears
from zigpass.prepare import prepare, survey
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites
from zigpass.tools.exported import quantize_exported, quantize_graph

NAMES = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def exported(model, x=None):
    return torch.export.export(model.eval(), (one_row() if x is None else x,)).module()


def pt2e_mlp(kind="affine", bias=True):
    torch.manual_seed(0)
    return quantize_graph(exported(SwiGlu(bias=bias)), one_row(), kind)


def of_subclasses(unwrap):
    torch.manual_seed(0)
    model = SwiGlu(bias=True)
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))
    return exported(unwrap_tensor_subclass(model) if unwrap else model)


GRAPHS = {
    "PT2E groups": lambda: pt2e_mlp("affine"),
    "PT2E rows": lambda: pt2e_mlp("channel"),
    "PT2E tensor": lambda: pt2e_mlp("tensor"),
    "torchao subclasses": lambda: of_subclasses(False),
    "torchao subclasses unwrapped": lambda: of_subclasses(True),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_becomes_a_packed_linear_under_its_name(name):
    graph, x = GRAPHS[name](), one_row()
    with torch.no_grad():
        expected = graph(x)
        assert [(item.name, item.reason) for item in survey(graph)] == [(layer, None) for layer in NAMES]
        assert prepare(graph, progress=False) is graph
        torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-6)
    assert [layer for layer, _ in find_linears(graph)] == NAMES
    assert not list(graph.parameters())  # codes, scales and the float weights that PT2E keeps are gone
    assert {buffer.rpartition(".")[2] for buffer, _ in graph.named_buffers()} == {
        "codes", "scale", "zero", "bias", "threshold",
    }  # fmt: skip
    assert list(find_sites(graph)) == ["mlp_in", "mlp_mid"]
    assert explain(graph, x).kinds == {"gated_mlp": 1}
    again = torch.export.export(graph, (x,))
    assert passes.run(again).kinds == {"gated_mlp": 1}
    with torch.no_grad():
        torch.testing.assert_close(again.module()(x), expected, rtol=1e-5, atol=1e-6)


def test_thresholds_count_after_prepare():
    graph, x = pt2e_mlp(), one_row()
    prepare(graph, progress=False)
    with torch.inference_mode():
        dense = graph(x)
        for site in find_sites(graph).values():
            site.set_threshold(0.3)
        fast = torch.compile(graph, backend="zigpass", options={"inner": "eager"})
        torch.testing.assert_close(fast(x), graph(x), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(graph(x), dense, atol=1e-3)


def test_a_transformers_model_through_pt2e():
    model, tokens = tiny_llama(), torch.tensor([[5]])
    graph = quantize_exported(model, {"input_ids": tokens}, "affine")
    with torch.no_grad():
        expected = graph(tokens)
        prepare(graph, progress=False)
        torch.testing.assert_close(graph(tokens), expected, rtol=1e-4, atol=1e-5)
    assert len(list(find_linears(graph))) == 2 * 7
    assert explain(graph, tokens).kinds == {"gated_mlp": 2, "qkv": 2, "linear": 2}


def test_explain_says_what_prepare_would_do():
    report = explain(pt2e_mlp(), one_row())
    assert [(row.name, row.kind, row.n, row.k) for row in report.rows] == [
        ("gate_proj", "quantized", 96, 64),
        ("up_proj", "quantized", 96, 64),
        ("down_proj", "quantized", 64, 96),
    ]
    assert all("torch.compile packs it when it runs, keeps both copies" in row.note for row in report.rows)
    assert "call zigpass.prepare, which packs once and frees their 0.02 MB" in str(report)


def test_filter_leaves_calls_as_they_are():
    graph, x = pt2e_mlp(), one_row()
    with torch.no_grad():
        expected = graph(x)
        prepare(graph, progress=False, filter_fn=lambda module, name: name != "up_proj")
        torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-6)
    assert [layer for layer, _ in find_linears(graph)] == ["gate_proj", "down_proj"]
    assert [item.name for item in survey(graph)] == ["up_proj"]
    prepare(graph, progress=False)
    assert [layer for layer, _ in find_linears(graph)] == NAMES


def test_a_difference_is_caught_before_the_graph_is_changed(monkeypatch):
    graph, x = pt2e_mlp(), one_row()
    code = graph.code
    expected = graph(x)

    def doubled(codes, scale, *rest):
        return affine.affine_weight(codes, scale * 2, *rest)

    monkeypatch.setattr("zigpass.formats.dequantize_call.affine_weight", doubled)
    with pytest.raises(ZigpassError, match=r"nothing is changed; .*\n  - gate_proj: QDQ graph .* weights differ"):
        prepare(graph, progress=False)
    assert graph.code == code
    assert torch.equal(graph(x), expected)


class Functional(nn.Module):
    """Linears that are no modules, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(64, 64) * 0.1)
        self.second = nn.Parameter(torch.randn(64, 64) * 0.1)

    def forward(self, x):
        x = nn.functional.linear(nn.functional.linear(x, self.first), self.second)
        return nn.functional.linear(x, self.first)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Functional()

    def forward(self, x):
        return self.block(x)


def test_linears_without_modules_get_names_and_a_shared_weight_stays_one():
    torch.manual_seed(0)
    graph, x = quantize_graph(exported(Nested()), one_row(), "affine"), one_row()
    with torch.no_grad():
        expected = graph(x)
        prepare(graph, progress=False)
        torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-6)
    assert 2 <= len(list(find_linears(graph))) <= 3  # PT2E may give every use scales of its own
    assert all(isinstance(linear, ZigzagLinear) for _, linear in find_linears(graph))


def dequantizes(weight=None, x=None):
    """A graph with one linear; the arguments change its weight and its input."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("codes", torch.randint(-8, 8, (16, 64), dtype=torch.int8))
            self.register_buffer("scale", torch.rand(16, 2) * 0.1 + 0.01)
            self.register_buffer("zero", torch.zeros(16, 2, dtype=torch.int32))

        def forward(self, value):
            def call(codes, scale):
                op = torch.ops.torchao.dequantize_affine.default
                return op(codes, [1, 32], scale, self.zero, torch.int8, -8, 7)

            new = call(self.codes, self.scale) if weight is None else weight(self, call)
            return nn.functional.linear(value if x is None else x(self, value), new)

    return exported(Model())


def round_trip(model, value):
    """A quantized activation: values of 8 bits."""
    scale, zero = torch.ones(1) * 0.05, torch.zeros(1, dtype=torch.int32)
    block = [1, 1, 64]
    codes = torch.ops.torchao.quantize_affine.default(value, block, scale, zero, torch.int8, -128, 127)
    return torch.ops.torchao.dequantize_affine.default(codes, block, scale, zero, torch.int8, -128, 127)


REFUSED = {
    "computed codes": (
        {"weight": lambda model, call: call(model.codes.clamp(-4, 4), model.scale)},
        "its codes or scales are computed in the graph (clamp), not stored",
    ),
    "computed scales": (
        {"weight": lambda model, call: call(model.codes, model.scale * 2)},
        "its codes or scales are computed in the graph (mul), not stored",
    ),
    "quantized input": ({"x": round_trip}, "its input is quantized too (dequantize_affine"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_are_no_stored_weights_are_refused_with_the_reason(name):
    settings, reason = REFUSED[name]
    graph, x = dequantizes(**settings), one_row()
    expected = graph(x)
    with pytest.raises(ZigpassError, match="these layers cannot be prepared") as caught:
        prepare(graph, progress=False)
    assert reason in str(caught.value)
    assert torch.equal(graph(x), expected)
    report = explain(graph, x)
    assert any(reason.split(" (")[0] in row.note for row in report.rows)


def test_the_same_graph_without_these_is_taken():
    graph, x = dequantizes(), one_row()
    with torch.no_grad():
        expected = graph(x)
        prepare(graph, progress=False)
        torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-6)
    assert len(list(find_linears(graph))) == 1
