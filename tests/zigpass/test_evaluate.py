import math
import sys

import pytest
import torch

from tests.models import SwiGlu, quantized_tiny_llama, random_tokens
from zigpass.calibrate import calibrate
from zigpass.evaluate import evaluate, evaluate_each
from zigpass.observe import sparse_rows
from zigpass.resume import StateFile
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites

TEXT = random_tokens(1000)


def run(model):
    return evaluate(model, TEXT, prefix=32, window=64, num_windows=3, progress=False)


def test_dense_thresholds_lose_nothing():
    quality = run(quantized_tiny_llama())
    assert quality.kl == pytest.approx(0, abs=1e-6)
    assert quality.perplexity == pytest.approx(quality.dense_perplexity, rel=1e-5)
    assert quality.top1_agreement == 1
    assert set(quality.realized_sparsity.values()) == {0.0}
    assert quality.num_tokens == 3 * 31


def test_more_sparsity_loses_more():
    model = quantized_tiny_llama()
    losses = []
    for target in (0.25, 0.5, 0.75):
        calibrate(model, TEXT, target, window=96, num_windows=3, progress=False)
        quality = run(model)
        losses.append(quality.kl)
        assert quality.total_sparsity == pytest.approx(target, abs=0.05)
    assert 0 < losses[0] < losses[1] < losses[2]


def test_several_thresholds_on_the_same_windows():
    model = quantized_tiny_llama(threshold=0.1)
    options = {"window": 96, "num_windows": 3, "progress": False}
    low, high = (calibrate(model, TEXT, target, allocation="uniform", **options) for target in (0.2, 0.6))
    for site in find_sites(model).values():
        site.set_threshold(0.1)
    settings = {"low": low, "high": high, "present": None}
    found = evaluate_each(model, TEXT, settings, prefix=32, window=64, num_windows=3, progress=False)
    assert all(site.threshold.tolist() == pytest.approx([0.1]) for site in find_sites(model).values())
    assert found["present"] == run(model)
    low.apply(model)
    assert found["low"] == run(model)
    high.apply(model)
    assert found["high"] == run(model)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch, decode_runs):
    model, path = quantized_tiny_llama(), tmp_path / "state.json"
    monkeypatch.setattr(sys.modules["zigpass.evaluate"], "BATCH_BYTES", 1)  # every window by itself
    options = {"window": 96, "num_windows": 3, "progress": False}
    settings = {f"{target}": calibrate(model, TEXT, target, allocation="uniform", **options) for target in (0.2, 0.6)}

    def evaluated():
        state = StateFile(path, {"weights": "these"})
        return evaluate_each(model, TEXT, settings, prefix=32, window=64, num_windows=3, state=state, progress=False)

    decode_runs.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        evaluated()
    resumed = evaluated()
    assert len(decode_runs) == 3 * len(settings)
    assert resumed == evaluated() == evaluate_each(
        model, TEXT, settings, prefix=32, window=64, num_windows=3, progress=False
    )  # fmt: skip
    assert len(decode_runs) == 2 * 3 * len(settings)


def test_standard_errors_are_over_the_windows():
    model = quantized_tiny_llama(threshold=0.3)
    quality = run(model)
    kls = torch.tensor(quality.window_kls, dtype=torch.float64)
    assert quality.kl == pytest.approx(float(kls.mean()))
    assert quality.kl_error == pytest.approx(float(kls.std() / math.sqrt(3)))
    assert quality.nll_increase == pytest.approx(math.log(quality.perplexity / quality.dense_perplexity))
    one = evaluate(model, TEXT, prefix=32, window=64, num_windows=1, progress=False)
    assert math.isnan(one.kl_error)


def test_it_measures_what_decoding_token_by_token_gives():
    model = quantized_tiny_llama(threshold=0.1)
    ids = TEXT[:64]
    nll = 0.0
    with torch.inference_mode():
        cache = model(ids[None, :32], use_cache=True).past_key_values
        for position in range(32, 63):
            logits = model(ids[None, position : position + 1], past_key_values=cache).logits[0, -1]
            nll -= float(logits.log_softmax(-1)[ids[position + 1]])
    quality = evaluate(model, ids, prefix=32, window=64, num_windows=1, progress=False)
    assert quality.perplexity == pytest.approx(math.exp(nll / 31), rel=1e-4)
    assert quality.perplexity != pytest.approx(quality.dense_perplexity, rel=1e-4)


def test_sparse_rows_is_undone_even_on_errors():
    model = quantized_tiny_llama()

    def fail():
        with sparse_rows(model):
            assert all(site.mask_rows for site in find_sites(model).values())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not any(site.mask_rows for site in find_sites(model).values())


def test_windows_side_by_side_score_as_one_by_one(monkeypatch):
    model = quantized_tiny_llama(threshold=0.2)
    together = run(model)
    monkeypatch.setattr(sys.modules["zigpass.evaluate"], "BATCH_BYTES", 1)
    alone = run(model)
    assert together.window_kls == pytest.approx(alone.window_kls, rel=1e-3)
    assert len(set(alone.window_kls)) == 3
    for name in ("dense_perplexity", "perplexity", "nll_error", "top1_agreement", "top1_error", "total_sparsity"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=1e-3), name
    assert together.num_tokens == alone.num_tokens


def test_nan_activations_name_the_site():
    model = quantized_tiny_llama(threshold=0.1)
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = torch.nan
    with pytest.raises(ZigpassError, match=r"model.layers.1.mlp.mlp_in: the activations hold NaN"):
        run(model)
    assert all(site.threshold.tolist() == pytest.approx([0.1]) for site in find_sites(model).values())


def test_unusable_settings_are_refused():
    with pytest.raises(ZigpassError, match="prefix must leave tokens to score"):
        evaluate(quantized_tiny_llama(), TEXT, prefix=64, window=64)
    with pytest.raises(ZigpassError, match="SwiGlu has no packed linears"):
        evaluate(SwiGlu(), TEXT)
    with pytest.raises(ZigpassError, match="the text has 1000 tokens, one window needs 2000"):
        evaluate(quantized_tiny_llama(), TEXT, window=2000)
