"""Prefill, decode, batches and `generate` through one compiled model, and how often it is compiled."""

import logging

import pytest
import torch

from tests.models import quantized_tiny_llama
from tests.zigpass.test_traps import CountingBackend

NEW_TOKENS, STEPS = 5, 3


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def random_prompts(batch, length):
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(batch + length))


def new_cache(kind, model):
    from transformers import DynamicCache, StaticCache

    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=32)
    return DynamicCache(config=model.config)


def prefill_and_decode(call, cache, batch, length):
    tokens = random_prompts(batch, length + STEPS)
    logits = [call(tokens[:, :length], past_key_values=cache).logits]
    for at in range(length, length + STEPS):
        logits.append(call(tokens[:, at : at + 1], past_key_values=cache).logits)  # noqa: PERF401
    return torch.cat(logits, 1)


@pytest.mark.parametrize(
    ("kind", "dynamic", "expected"),
    [
        # Shapes left to torch: each of prefill and decode once as it is and, where its shape changes (the length of
        # the prompt, that of a growing cache, the batch), once more for every size.
        ("static", None, [2, 3, 3, 5, 5]),
        ("dynamic", None, [3, 4, 4, 6, 6]),
        # Any size from the start: one graph for prefill, one for one token, and both again for batches.
        ("static", True, [2, 2, 2, 4, 4]),
        ("dynamic", True, [2, 2, 2, 4, 4]),
    ],
)
def test_no_recompile_per_length_step_or_batch(kind, dynamic, expected):
    model, backend = quantized_tiny_llama(0.05, layers=1), CountingBackend()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    counts = []
    with torch.inference_mode():
        for batch, length in ((1, 5), (1, 7), (1, 9), (2, 6), (3, 8)):
            logits = prefill_and_decode(compiled, new_cache(kind, model), batch, length)
            reference = prefill_and_decode(model, new_cache(kind, model), batch, length)
            torch.testing.assert_close(logits, reference, rtol=1e-4, atol=1e-5)
            counts.append(backend.count)
    assert counts == expected


def greedy_model():
    model = quantized_tiny_llama(0.05)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def generate(model, prompts, **settings):
    return model.generate(prompts, max_new_tokens=NEW_TOKENS, do_sample=False, **settings)


@pytest.mark.parametrize("settings", [{"options": {"inner": "eager"}, "mode": None}, {"fullgraph": True}])
def test_generate_with_a_compile_config(settings, caplog):
    """Decoding is compiled, by Inductor in the second case, and gives the tokens of the model as it is."""
    from transformers import CompileConfig

    model, prompts = greedy_model(), random_prompts(1, 6)
    expected = generate(model, prompts, cache_implementation="static", disable_compile=True)
    config = CompileConfig(backend="zigpass", **settings)
    config._compile_all_devices = True  # transformers compiles on accelerators only, unless told otherwise
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"):
        tokens = generate(model, prompts, cache_implementation="static", compile_config=config)
    assert torch.equal(tokens, expected)
    # One graph for all tokens.
    (message,) = [record.getMessage() for record in caplog.records if record.name == "zigpass.compile_log"]
    assert "matched 2 gated_mlp, 2 qkv, 2 linear" in message


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_generate_with_a_compiled_forward(batch, cache):
    model, backend, prompts = greedy_model(), CountingBackend(), random_prompts(batch, 6)
    mask = torch.ones_like(prompts)
    mask[-1, : 2 * (batch > 1)] = 0  # prompts of several lengths, padded on the left
    settings = {"attention_mask": mask, "cache_implementation": cache, "disable_compile": True}
    expected = generate(model, prompts, **settings)
    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    assert torch.equal(generate(model, prompts, **settings), expected)
    assert 2 <= backend.count <= 4
    compiled = backend.count
    assert torch.equal(generate(model, prompts, **settings), expected)
    assert backend.count == compiled


def test_inductor_without_the_backend_runs_a_packed_model_too():
    """Nothing is fused then, and nothing is wrong."""
    model = quantized_tiny_llama(0.05, layers=1)
    compiled = torch.compile(model, fullgraph=True)
    token = random_prompts(1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(token).logits, model(token).logits, rtol=1e-4, atol=1e-5)
