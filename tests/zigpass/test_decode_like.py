import pytest
import torch
from torch import nn

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.decode_like import DecodeLike, check_causal_model
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites

IDS = random_tokens(180).view(3, 60)


def test_the_rest_is_what_decoding_token_by_token_gives():
    model = quantized_tiny_llama(threshold=0.1)
    run = DecodeLike(model, IDS, 20)
    with torch.inference_mode():
        for window, expected in zip(IDS, run.run(), strict=True):
            cache = model(window[None, :20], use_cache=True).past_key_values
            for position in range(20, 59):
                logits = model(window[None, position : position + 1], past_key_values=cache).logits[0, -1]
                assert torch.allclose(logits.log_softmax(-1), expected[position - 20], atol=1e-4)
    assert torch.equal(run.targets, IDS[:, 21:])


def test_the_dense_run_ignores_thresholds_also_for_one_row():
    sparse, plain = quantized_tiny_llama(threshold=0.3), quantized_tiny_llama()
    for prefix in (20, 58):  # one row is left after 58
        run = DecodeLike(sparse, IDS[:1], prefix)
        assert torch.allclose(run.dense, DecodeLike(plain, IDS[:1], prefix).dense, atol=1e-6)
        assert float(run.kl(run.run())) > 1e-3


def test_runs_do_not_depend_on_each_other():
    model = quantized_tiny_llama(threshold=0.02)
    run = DecodeLike(model, IDS, 20)
    first = run.run()
    for site in find_sites(model).values():
        site.set_threshold(0.05)
    assert not torch.equal(run.run(), first)
    for site in find_sites(model).values():
        site.set_threshold(0.02)
    assert torch.equal(run.run(), first)


def test_kl_is_per_window_and_zero_for_the_dense_model():
    model = quantized_tiny_llama()
    run = DecodeLike(model, IDS, 20)
    assert run.kl(run.run()).abs().max() < 1e-6
    other = torch.randn(run.dense.shape, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = (run.dense.exp() * (run.dense - other)).sum(-1).mean(-1)
    assert torch.allclose(run.kl(other), expected, rtol=1e-4)


def test_logits_that_are_not_finite_are_refused():
    run = DecodeLike(quantized_tiny_llama(), IDS, 20)
    other = run.dense.clone()
    other[1, 3, 5] = torch.nan
    with pytest.raises(ZigpassError, match=r"LlamaForCausalLM gives NaN or infinite logits in windows \[1\] of 3"):
        run.kl(other)


def test_a_model_without_a_cache_is_refused():
    with pytest.raises(ZigpassError, match="Linear takes no key-value cache"):
        check_causal_model(nn.Linear(2, 2))
