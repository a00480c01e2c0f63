"""The whole chain on a real model: SmolLM2-135M-Instruct, its own 4-bit codes, compiled and decoded."""

import pytest
import torch

import zigpass
from zigpass.generate import generate
from zigpass.sites import dense, find_sites
from zigpass.tools.demo import encode_prompt, topics

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def tokenizer(smollm2_path):
    return zigpass.load_gguf_tokenizer(smollm2_path)


@pytest.fixture(scope="module")
def model(smollm2_path, tokenizer):
    model = zigpass.load_gguf(smollm2_path, progress=False)
    zigpass.calibrate(
        model, topics()[0], 0.5, allocation="uniform", tokenizer=tokenizer, window=256, num_windows=4, progress=False
    )
    return model


@pytest.fixture(scope="module")
def compiled(model):
    return torch.compile(model, backend="zigpass", options={"require_match": True}, fullgraph=True)


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return encode_prompt(tokenizer, "What is the capital of France?")


def static_cache(model, prompt, room=16):
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=prompt.shape[1] + room)


def decode_logits(model, step, prompt, tokens):
    """Logits of one-token steps over given tokens after a dense prefill."""
    cache = static_cache(model, prompt)
    with torch.inference_mode():
        model(prompt, past_key_values=cache, use_cache=True)
        return torch.cat([step(token.view(1, 1), past_key_values=cache, use_cache=True).logits for token in tokens], 1)


def test_weights_are_the_checkpoints_own(model, smollm2_path):
    from zigpass.formats.gguf_file import GgufFile

    file = GgufFile(smollm2_path)
    down = model.model.layers[7].mlp.down_proj.unpack().dequantize()
    assert torch.equal(down, file.dequantized("blk.7.ffn_down.weight"))


def test_every_mlp_and_projection_matches(model, prompt):
    cache = static_cache(model, prompt)
    with torch.inference_mode():
        model(prompt, past_key_values=cache, use_cache=True)
        report = zigpass.explain(model, prompt[:, :1], past_key_values=cache, use_cache=True)
    assert report.kinds == {"gated_mlp": 30, "qkv": 30, "linear": 30, "dense_linear": 1}
    assert {match.modules[0].rpartition(".")[2] for match in report.matches if match.kind == "linear"} == {"o_proj"}
    assert report.near_misses == []
    assert report.graph_breaks == []


def test_dense_logits_equal_the_uncompiled_model(model, compiled, prompt):
    tokens = torch.tensor([504, 3575, 282, 4649])
    with dense(model):
        expected = decode_logits(model, model, prompt, tokens)
        actual = decode_logits(model, compiled, prompt, tokens)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)
        assert torch.equal(actual.argmax(-1), expected.argmax(-1))


def test_sparse_logits_equal_the_uncompiled_model(model, compiled, prompt):
    tokens = torch.tensor([504, 3575, 282, 4649])
    expected = decode_logits(model, model, prompt, tokens)
    actual = decode_logits(model, compiled, prompt, tokens)
    # A threshold decision may flip between two orders of summation, so a few logits may differ more.
    assert (actual - expected).abs().mean() < 1e-2
    with dense(model):
        assert (decode_logits(model, model, prompt, tokens) - expected).abs().mean() > 0.1


def test_swapping_thresholds_compiles_nothing_and_text_stays_sensible(model, compiled, tokenizer, prompt):
    from torch._dynamo.utils import counters

    def run():
        length = prompt.shape[1] + 16
        result = generate(
            model, prompt, max_new_tokens=12, decode=compiled, end_tokens={tokenizer.eos_token_id}, cache_length=length
        )
        return tokenizer.decode(result.tokens)

    run()
    before = counters["stats"]["unique_graphs"]
    with dense(model):
        dense_text = run()
    sparse_text = run()
    assert counters["stats"]["unique_graphs"] == before
    assert "Paris" in dense_text
    assert "Paris" in sparse_text


def test_half_sparsity_costs_what_it_should(model, tokenizer):
    quality = zigpass.evaluate(model, topics()[1], tokenizer=tokenizer, num_windows=2, progress=False)
    realized = [quality.realized_sparsity[name] for name in find_sites(model)]
    assert 0.48 < sum(realized) / len(realized) < 0.55
    assert 9 < quality.dense_perplexity < 16
    assert 0.2 < quality.kl < 0.6  # 0.42 +- 0.02 over eight windows
    assert 0.6 < quality.top1_agreement < 0.85
