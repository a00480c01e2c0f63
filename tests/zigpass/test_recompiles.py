"""A decode loop compiles its step once: no break in the graph, no second graph, one CUDA graph that is replayed."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.decode_step import WARM_UP_STEPS, DecodeStep
from zigpass.generate import generate

NEW_TOKENS = 12
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def options_for(device):
    return {"require_match": True, "inner": "eager" if device == "cpu" else "inductor"}


def assert_compiled_once():
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("device", DEVICES)
def test_generate_compiles_its_step_once(device, monkeypatch):
    captured = []
    capture = DecodeStep._capture
    monkeypatch.setattr(DecodeStep, "_capture", lambda self, token: captured.append(self) or capture(self, token))
    model = quantized_tiny_llama(0.05).to(device)
    compiled = torch.compile(model, backend="zigpass", options=options_for(device))
    for length in (7, 5):
        ids = random_tokens(length)[None].to(device)
        expected = generate(model, ids, max_new_tokens=NEW_TOKENS, cache_length=32).tokens.tolist()
        result = generate(model, ids, max_new_tokens=NEW_TOKENS, cache_length=32, decode=compiled)
        assert result.tokens.tolist() == expected
    assert_compiled_once()
    assert len(captured) == (2 if device == "cuda" else 0)  # one graph a cache


@pytest.mark.cuda
def test_a_token_cut_out_of_a_prompt_does_not_compile_the_step_again():
    from transformers import StaticCache

    model = quantized_tiny_llama(0.05).cuda()
    ids = random_tokens(7)[None].cuda()
    cache = StaticCache(config=model.config, max_cache_len=32)
    step = DecodeStep(torch.compile(model, backend="zigpass"), cache, cuda_graph=True)
    with torch.inference_mode():
        model(ids, past_key_values=cache, use_cache=True)
        for _ in range(WARM_UP_STEPS):
            step(ids[:, -1:])
        step(step(ids[:, -1:])[:, -1].argmax(-1, keepdim=True))
    assert_compiled_once()


@pytest.mark.parametrize("device", DEVICES)
def test_hugging_faces_generate_compiles_its_step_once(device):
    from transformers import CompileConfig

    model = quantized_tiny_llama(0.05).to(device)
    ids = random_tokens(7)[None].to(device)
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = generate(model, ids, max_new_tokens=NEW_TOKENS).tokens.tolist()
    how = CompileConfig(backend="zigpass", fullgraph=True)  # its mode is "reduce-overhead": torch's CUDA graphs
    if device == "cpu":
        how = CompileConfig(backend="zigpass", fullgraph=True, mode=None, options=options_for(device))
        how._compile_all_devices = True
    tokens = model.generate(ids, cache_implementation="static", compile_config=how, **settings)
    assert tokens[0, 7:].tolist() == expected
    assert_compiled_once()
