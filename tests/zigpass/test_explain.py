"""The report on a model: every linear, every match, every reason."""

import io
import json

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from tests.models import SwiGlu, quantized_tiny_llama, tiny_llama
from tests.passes.graphs import one_row, packed_block
from tests.zigpass.test_traps import CountingBackend
from zigpass.explain import explain

ONE_TOKEN = torch.tensor([[5]])


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def swiglu(m, x):
    return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))


def kinds_by_layer(report):
    return {row.name: row.kind for row in report.rows}


def test_decoding_llama_has_a_row_for_every_linear():
    model = quantized_tiny_llama()
    report = explain(model, ONE_TOKEN)
    assert report.kinds == {"gated_mlp": 2, "qkv": 2, "linear": 2}
    kinds = kinds_by_layer(report)
    assert kinds["model.layers.1.self_attn.k_proj"] == "qkv"
    assert kinds["model.layers.0.self_attn.o_proj"] == "linear"
    assert kinds["model.layers.0.mlp.down_proj"] == "gated_mlp"
    assert kinds["lm_head"] == "float"
    assert len(kinds) == 15
    assert report.packed_bytes == sum(match.num_bytes for match in report.matches)
    assert report.num_graphs == 1
    assert not report.graph_breaks


def test_prompt_of_several_tokens_says_what_one_would_get():
    report = explain(quantized_tiny_llama(), torch.tensor([[5, 6, 7]]))
    assert not report.matches
    assert len(report.at_decode) == 6
    (row,) = [row for row in report.rows if row.name == "model.layers.0.self_attn.q_proj"]
    assert (row.kind, row.note) == ("dense", "3 rows: runs dense, qkv when decoding one token")
    assert (
        "captured with more than one row, which runs dense; decoding one token would match 2 gated_mlp, 2 qkv, 2 linear"
        in str(report)
    )


def test_float_model_is_told_what_to_do():
    report = explain(tiny_llama(), ONE_TOKEN)
    assert set(kinds_by_layer(report).values()) == {"float"}
    assert "nothing matched in 1 graph" in str(report)
    assert "not quantized: 15 linears" in str(report)
    sentence = (
        "model.layers.0.mlp.(gate_proj, up_proj, down_proj) are not quantized: call zigpass.quantize_(model, ...) first"
    )
    assert sentence in [near_miss.reason for near_miss in report.near_misses]
    assert f"- {sentence}" in str(report)
    assert next(row.note for row in report.rows if row.name == "model.layers.0.mlp.up_proj") == sentence


def test_near_miss_stands_at_its_layers():
    block = packed_block(lambda m, x: m.down_proj(F.leaky_relu(m.gate_proj(x)) * m.up_proj(x)))
    report = explain(block, one_row())
    assert kinds_by_layer(report) == {"gate_proj": "qkv", "up_proj": "qkv", "down_proj": "linear"}
    assert all("leaky_relu of gate_proj is not an activation" in row.note for row in report.rows)


def test_model_without_linears():
    report = explain(nn.ReLU(), torch.ones(3))
    assert not report.rows
    assert "the model has no linear layers" in str(report)


def test_layer_that_is_not_called():
    block = packed_block(lambda m, x: m.down_proj(F.relu(m.up_proj(x))))
    (row,) = [row for row in explain(block, one_row()).rows if row.name == "gate_proj"]
    assert (row.kind, row.note) == ("unused", "not part of any captured graph")


class Breaks(nn.Module):
    """Calls its layer from a place Dynamo does not follow, so that the layer starts a graph of its own."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([packed_block(swiglu), packed_block(swiglu)])
        self.calls = 0

    def forward(self, x, cache):
        for block in self.blocks:
            x = block(x)
            cache.add_(1)
            torch._dynamo.graph_break()
        return x


def test_graph_breaks_are_listed_and_names_stay_whole():
    cache, model = torch.zeros(1), Breaks()
    report = explain(model, one_row(), cache)
    assert report.kinds == {"gated_mlp": 2}
    assert report.num_graphs >= 2
    assert set(kinds_by_layer(report)) == {
        f"blocks.{index}.{name}" for index in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")
    }
    assert set(kinds_by_layer(report).values()) == {"gated_mlp"}
    assert report.graph_breaks
    assert "graph breaks:" in str(report)
    assert float(cache) == 0.0  # it ran on a copy
    for _ in range(10):  # more often than Dynamo's recompile limit
        assert explain(model, one_row(), cache) == report


def test_any_number_of_models_can_be_explained():
    """Dynamo files all of them under one function, and stops compiling a function after 8 times."""

    def body(m, x):
        torch._dynamo.graph_break()
        return swiglu(m, x)

    for middle in range(32, 32 * 11, 32):
        sizes = {"gate_proj": (64, middle), "up_proj": (64, middle), "down_proj": (middle, 64)}
        assert explain(packed_block(body, **sizes), one_row()).kinds == {"gated_mlp": 1}


def test_nothing_runs_and_no_cache_moves():
    from transformers import StaticCache

    model = quantized_tiny_llama()
    cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        model(torch.tensor([[1, 2]]), past_key_values=cache)
    keys = cache.layers[0].keys.clone()
    report = explain(model, ONE_TOKEN, past_key_values=cache)
    assert report.kinds["gated_mlp"] == 2
    assert torch.equal(cache.layers[0].keys, keys)
    assert cache.get_seq_length() == 2


def test_compiled_model_stays_compiled():
    block, backend = packed_block(swiglu), CountingBackend()
    compiled = torch.compile(block, backend=backend)
    with torch.no_grad():
        compiled(one_row())
        for _ in range(10):  # more often than Dynamo's recompile limit
            assert explain(compiled, one_row()).kinds == {"gated_mlp": 1}
        compiled(one_row())
        assert backend.count == 1
        compiled(torch.randn(1, 5, 64))
    assert backend.count == 2


def test_same_report_every_time():
    block = packed_block(swiglu)
    for shape in ((1, 1, 64), (1, 5, 64), (1, 1, 64), (1, 7, 64)):
        report = explain(block, torch.ones(shape))
        expected = "gated_mlp" if shape[1] == 1 else "dense"
        assert set(kinds_by_layer(report).values()) == {expected}
        assert all(f"{shape[1]} rows" in row.note for row in report.rows if row.kind == "dense")


def test_json_and_table():
    report = explain(packed_block(swiglu), one_row())
    plain = json.loads(report.to_json())
    assert plain["kinds"] == {"gated_mlp": 1}
    assert plain["linears"][0]["name"] == "gate_proj"
    assert plain["matches"][0]["modules"] == ["gate_proj", "up_proj", "down_proj"]
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(report)
    assert "down_proj" in console.export_text()


def test_explain_does_not_need_gradients_off():
    assert explain(SwiGlu(), one_row().requires_grad_()).rows[0].kind == "float"
    assert explain(packed_block(swiglu), one_row().requires_grad_()).kinds == {"gated_mlp": 1}
