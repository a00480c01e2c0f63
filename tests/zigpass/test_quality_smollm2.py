"""The default allocation on a real model: a few layers, little text, so that it takes seconds."""

import pytest

import zigpass
from zigpass.evaluate import evaluate_each
from zigpass.tools.demo import topics

pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_the_default_loses_less_than_uniform_on_held_out_text(smollm2_path):
    model = zigpass.load_gguf(smollm2_path, progress=False)
    tokenizer = zigpass.load_gguf_tokenizer(smollm2_path)
    calibration_text, held_out = (text[:60_000] for text in topics())
    options = {
        "sites": ["model.layers.0.*", "model.layers.29.*"],
        "tokenizer": tokenizer,
        "window": 128,
        "num_windows": 4,
        "progress": False,
    }
    settings = {
        allocation: zigpass.calibrate(model, calibration_text, 0.6, allocation=allocation, **options)
        for allocation in ("measured", "uniform")
    }
    assert settings["measured"].allocation == "measured"
    found = evaluate_each(
        model, held_out, settings, tokenizer=tokenizer, prefix=64, window=192, num_windows=3, progress=False
    )
    assert found["measured"].kl < 0.8 * found["uniform"].kl
    assert found["uniform"].top1_agreement > 0.5
    for name, site in settings["measured"].sites.items():
        assert found["measured"].realized_sparsity[name] == pytest.approx(site.target_sparsity, abs=0.15), name
