"""Every family of models: what matches, that decoding gives the same, and that nothing stays silent."""

import copy

import pytest
import torch
from transformers import StaticCache

from zigpass.config import ZigzagConfig
from zigpass.explain import explain
from zigpass.linear import find_linears
from zigpass.quantize import quantize_
from zigpass.sites import find_sites
from zigpass.tools.tiny_models import FAMILIES, decode_inputs, tiny_model

LAYERS, PROMPT, STEPS = 2, 4, 2
SPARSE_KINDS = {"gated_mlp", "mlp", "qkv", "linear"}

SEPARATE = {"gated_mlp": 1, "qkv": 1, "linear": 1}
TWO_MATRICES = {"mlp": 1, "qkv": 1, "linear": 1}
ONE_QKV = {"mlp": 1, "linear": 2}
EXPERTS = {"qkv": 1, "linear": 1}
PER_LAYER = {
    **dict.fromkeys(FAMILIES, SEPARATE),
    "Phi3": {"gated_mlp": 1, "linear": 2},
    "GPT2": ONE_QKV,
    "OPT": TWO_MATRICES,
    "Falcon": ONE_QKV,
    "Starcoder2": TWO_MATRICES,
    "Mixtral": EXPERTS,
    "Qwen3Moe": EXPERTS,
}
"""Matches of one decoder layer; a qkv that the model keeps in one linear counts as "linear"."""
ACTIVATIONS = {
    **dict.fromkeys(FAMILIES, "silu"),
    "Gemma2": "gelu_tanh",
    "Gemma3": "gelu_tanh",
    "GPT2": "gelu_tanh",
    "OPT": "relu",
    "Falcon": "gelu",
    "Starcoder2": "gelu_tanh",
}
EXPERT_NOTE = "4 experts in one parameter, of which the router picks some for each token: they run in float"
ROUTER_NOTE = "a weight that its module uses by itself, not through a linear that could be replaced"
HEAD_NOTE = "the output head: quantize_ leaves it in float unless filter_fn asks for it"
FLOAT_NOTES = {
    "lm_head": HEAD_NOTE,
    "experts.gate_up_proj": EXPERT_NOTE,
    "experts.down_proj": EXPERT_NOTE,
    "mlp.gate": ROUTER_NOTE,
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def after_prompt(model, family):
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.inference_mode():
        model(**decode_inputs(family, 0, PROMPT), past_key_values=cache)
    return cache


def decode(call, family, cache):
    steps = range(PROMPT, PROMPT + STEPS)
    with torch.inference_mode():
        return torch.cat([call(**decode_inputs(family, at, at + 1), past_key_values=cache).logits for at in steps], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_is_matched_or_named(family):
    model = tiny_model(family)
    quantize_(model, ZigzagConfig(group_size=32), progress=False)
    cache = after_prompt(model, family)
    report = explain(model, **decode_inputs(family, PROMPT, PROMPT + 1), past_key_values=cache, sparsity=0.5)

    assert report.num_graphs == 1
    assert report.kinds == {kind: LAYERS * count for kind, count in PER_LAYER[family].items()}
    assert {match.activation for match in report.matches} <= {ACTIVATIONS[family], None}
    assert not report.near_misses
    packed = {name for name, _ in find_linears(model)}
    assert {row.name for row in report.rows if row.kind in SPARSE_KINDS} == packed
    for row in report.rows:
        if row.name not in packed:
            (expected,) = {note for end, note in FLOAT_NOTES.items() if row.name.endswith(end)}
            assert row.note == expected
    covered = [module for match in report.matches for module in match.modules]
    assert sorted(covered) == sorted(packed)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_through_the_backend_equals_the_eager_model(family):
    model = quantize_(tiny_model(family), ZigzagConfig(group_size=32), progress=False)
    start = after_prompt(model, family)
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"inner": "eager"})
    expected = {}
    for threshold in (0.0, 0.1):
        for site in find_sites(model).values():
            site.set_threshold(threshold)
        expected[threshold] = decode(model, family, copy.deepcopy(start))
        logits = decode(compiled, family, copy.deepcopy(start))
        torch.testing.assert_close(logits, expected[threshold], rtol=1e-4, atol=1e-4)
    assert (expected[0.0] - expected[0.1]).abs().max() > 1e-3  # the threshold does something


@pytest.mark.parametrize("family", FAMILIES)
def test_quantizing_keeps_what_the_model_computes(family):
    """8 bits are close to the float model: no weight is transposed, cut or biased the wrong way."""
    float_model = tiny_model(family)
    packed = quantize_(copy.deepcopy(float_model), ZigzagConfig(bits=8, group_size=32), progress=False)
    call = decode_inputs(family, 0, PROMPT)
    with torch.inference_mode():
        expected, actual = float_model(**call).logits, packed(**call).logits
    assert (actual - expected).norm() / expected.norm() < 0.02
