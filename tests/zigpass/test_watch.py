import pytest
import torch

from tests.models import SwiGlu, quantized_tiny_llama, random_tokens
from zigpass.calibrate import calibrate
from zigpass.generate import generate
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites
from zigpass.watch import watch_sparsity


def test_decoding_is_counted_and_prefill_is_not():
    model = quantized_tiny_llama()
    thresholds = calibrate(model, random_tokens(600), 0.4, allocation="uniform", window=96, progress=False)
    with watch_sparsity(model) as watch:
        generate(model, random_tokens(20)[None], max_new_tokens=30)
    assert set(watch.num_tokens) == set(find_sites(model))
    assert set(watch.num_tokens.values()) == {29}
    assert watch.total == pytest.approx(0.4, abs=0.1)
    drift = watch.drift(thresholds)
    assert drift == pytest.approx({name: share - 0.4 for name, share in watch.sites.items()}, abs=1e-9)


def test_counts_are_exact():
    model = quantized_tiny_llama(threshold=0.3)
    site = find_sites(model)["model.layers.0.mlp.mlp_mid"]
    x = torch.zeros(1, 1, 96)
    x[..., :24] = 1.0
    with watch_sparsity(model) as watch:
        model.model.layers[0].mlp.down_proj(x)
    assert watch.sites == {site.name: 0.75}
    assert watch.total == 0.75


def test_nothing_is_left_behind():
    model = quantized_tiny_llama()
    with watch_sparsity(model) as watch:
        pass
    model(random_tokens(1)[None])
    with pytest.raises(ZigpassError, match="no decoded token was seen"):
        watch.total  # noqa: B018  # a property that raises


def test_a_model_without_packed_linears_is_refused():
    with pytest.raises(ZigpassError, match="SwiGlu has no packed linears to watch"), watch_sparsity(SwiGlu()):
        pass
