"""A Llama with grouped-query attention decodes through the backend."""

import logging

import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from tests.zigpass.test_traps import CountingBackend
from zigpass.linear import find_linears
from zigpass.sites import find_sites

PROMPT, STEPS = 6, 4


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def llama(sparsity):
    """With thresholds that make about that share of every activation inactive."""
    model = quantized_tiny_llama()
    hooks = [linear.register_forward_pre_hook(set_threshold(sparsity)) for _, linear in find_linears(model)]
    with torch.no_grad():
        model(random_tokens(32, seed=7)[None])
    for hook in hooks:
        hook.remove()
    return model


def set_threshold(sparsity):
    return lambda linear, args: linear.site.set_threshold(args[0].abs().float().quantile(sparsity) if sparsity else 0.0)


def static_cache(model):
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=16)


def dynamic_cache(model):
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def decode(call, cache):
    """Logits of a prefill and of the tokens after it, one at a time."""
    tokens = random_tokens(PROMPT + STEPS)[None]
    logits = [call(tokens[:, :PROMPT], past_key_values=cache).logits]
    for position in range(PROMPT, PROMPT + STEPS):
        logits.append(call(tokens[:, position : position + 1], past_key_values=cache).logits)  # noqa: PERF401
    return torch.cat(logits, 1)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("new_cache", [static_cache, dynamic_cache])
@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_prefill_and_decode_equal_the_eager_model(inner, new_cache, sparsity):
    model = llama(sparsity)
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"inner": inner})
    mine, expected = new_cache(model), new_cache(model)
    with torch.inference_mode():
        logits = decode(compiled, mine)
        torch.testing.assert_close(logits, decode(model, expected), rtol=1e-4, atol=1e-5)
    for layer, other in zip(mine.layers, expected.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.values, other.values, rtol=1e-4, atol=1e-5)


def test_thresholds_change_what_decoding_computes():
    """Guards the test above: at 50 % the logits differ from the dense ones, after the prefill and not in it."""
    with torch.inference_mode():
        dense, sparse = (decode(model, static_cache(model)) for model in (llama(0.0), llama(0.5)))
    torch.testing.assert_close(dense[:, :PROMPT], sparse[:, :PROMPT])
    assert (dense[:, PROMPT:] - sparse[:, PROMPT:]).abs().max() > 1e-2


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_a_fixed_count_of_entries_is_fused_and_can_be_changed(inner):
    model = quantized_tiny_llama()
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"inner": inner})
    seen = []
    for share in (0.5, 0.25):
        for site in find_sites(model).values():
            site.set_threshold(torch.tensor([int(site.features * share)], dtype=torch.int32))
        with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=share != 0.5):
            logits = decode(compiled, static_cache(model))
            torch.testing.assert_close(logits, decode(model, static_cache(model)), rtol=1e-4, atol=1e-5)
        seen.append(logits)
    assert (seen[0][:, PROMPT:] - seen[1][:, PROMPT:]).abs().max() > 1e-2


def test_every_mlp_and_every_projection_matches(caplog):
    model = quantized_tiny_llama(layers=3)
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"inner": "eager"})
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"), torch.inference_mode():
        decode(compiled, static_cache(model))
    prefill, decoding = [record.getMessage() for record in caplog.records if record.name == "zigpass.compile_log"]
    assert "matched nothing" in prefill
    assert "21 packed linears run dense" in prefill
    assert "matched 3 gated_mlp, 3 qkv, 3 linear" in decoding


def test_only_shapes_recompile():
    model, backend = quantized_tiny_llama(), CountingBackend()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.inference_mode():
        decode(compiled, static_cache(model))
        assert backend.count == 2  # prefill and decode
        for threshold in (0.1, 0.5, 0.0):
            for site in find_sites(model).values():
                site.set_threshold(threshold)
            decode(compiled, static_cache(model))
    assert backend.count == 2


def test_decoder_layers_compiled_one_by_one_share_their_graphs():
    model, reference, backend = llama(0.5), llama(0.5), CountingBackend()
    for layer in model.model.layers:
        layer.mlp.compile(backend=backend, fullgraph=True)
    with torch.inference_mode():
        logits = decode(model, static_cache(model))
        torch.testing.assert_close(logits, decode(reference, static_cache(model)), rtol=1e-4, atol=1e-5)
    assert backend.count == 2


def test_batches_run_dense_and_right():
    model, backend = llama(0.5), CountingBackend()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.inference_mode():
        for batch in (2, 3, 4):
            tokens = random_tokens(batch)[:, None]
            torch.testing.assert_close(compiled(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
