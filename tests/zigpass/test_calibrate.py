import pytest
import torch
from torch import nn

from tests.models import SwiGlu, quantized_tiny_llama, random_tokens
from zigpass.calibrate import calibrate
from zigpass.calibration import SKIPPED_POSITIONS, Calibration
from zigpass.config import ZigzagConfig
from zigpass.observe import observe_sites, site_readers
from zigpass.quantize import quantize_
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites

TEXT = random_tokens(2000)


def run(model, **kwargs):
    return calibrate(model, TEXT, window=96, num_windows=4, progress=False, **kwargs)


def test_realized_sparsity_on_the_calibration_text_is_the_target():
    model = quantized_tiny_llama()
    thresholds = run(model, target_sparsity=0.4, allocation="uniform", recalibrate=False)
    seen = {}
    readers = site_readers(model)

    def count(site, x):
        kept = x[:, SKIPPED_POSITIONS:]
        below, total = seen.get(site.name, (0, 0))
        seen[site.name] = below + int((kept.abs() < site.threshold).sum()), total + kept.numel()

    with torch.no_grad(), observe_sites(readers, count):
        for ids in Calibration(model, TEXT, window=96, num_windows=4).windows:
            model(ids[None])
    assert len(seen) == len(thresholds.sites) == 8
    for name, (below, total) in seen.items():
        assert below / total == pytest.approx(0.4, abs=2e-3), name
        assert thresholds.sites[name].realized_sparsity == pytest.approx(0.4, abs=1e-6)


def test_thresholds_are_set_on_the_model_and_repeat():
    model = quantized_tiny_llama()
    first, second = run(model), run(model)
    for name, site in find_sites(model).items():
        assert torch.equal(site.threshold, first.sites[name].threshold)
        assert torch.equal(first.sites[name].threshold, second.sites[name].threshold)
    assert first.num_tokens == 4 * (72 - 48 - 1)
    assert run(model, recalibrate=False).num_tokens == 4 * (96 - SKIPPED_POSITIONS)
    assert (first.fingerprint, first.text_hash) == (second.fingerprint, second.text_hash)


def test_target_zero_is_dense():
    model = quantized_tiny_llama(threshold=0.5)
    run(model, target_sparsity=0.0)
    assert all(site.threshold.tolist() == [0.0] for site in find_sites(model).values())


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5, float("nan")])
def test_target_outside_its_range_is_refused(target):
    with pytest.raises(ZigpassError, match="target_sparsity must be at least 0 and below 1"):
        run(quantized_tiny_llama(), target_sparsity=target)


def test_window_that_is_all_skipped_is_refused():
    with pytest.raises(ZigpassError, match="windows longer than 32 tokens"):
        calibrate(quantized_tiny_llama(), TEXT, window=32)
    with pytest.raises(ZigpassError, match="num_windows=0"):
        calibrate(quantized_tiny_llama(), TEXT, num_windows=0)


def test_a_model_without_packed_linears_is_refused():
    with pytest.raises(
        ZigpassError, match=r"SwiGlu has no packed linears to calibrate; call zigpass.prepare .*, zigpass"
    ):
        calibrate(SwiGlu(), TEXT)


@pytest.mark.parametrize("options", [{}, {"allocation": "uniform"}, {"allocation": "uniform", "recalibrate": False}])
def test_nan_activations_name_the_site_and_leave_thresholds_alone(options):
    model = quantized_tiny_llama(threshold=0.125)
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = torch.nan
    with pytest.raises(ZigpassError, match=r"model.layers.1.mlp.mlp_in: the activations hold NaN"):
        run(model, **options)
    assert all(site.threshold.tolist() == [0.125] for site in find_sites(model).values())


def test_a_site_that_never_runs_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
            self.embed = nn.Embedding(97, 8)

        def forward(self, ids, use_cache):
            return self.used(self.embed(ids))

    model = quantize_(Unused(), ZigzagConfig(group_size=8), progress=False)
    with pytest.raises(ZigpassError, match="never used these sites on the calibration text: unused"):
        run(model, allocation="uniform")


def test_no_window_is_used_twice_and_probes_are_not_at_the_ends():
    own = Calibration(quantized_tiny_llama(), torch.arange(22 * 40) % 97, window=40, num_windows=18, progress=False)
    windows, held_out, probes = (
        [tuple(ids.tolist()) for ids in part] for part in (own.windows, own.held_out, own.probe_windows)
    )
    assert (len(windows), len(held_out), len(probes)) == (18, 4, 3)
    assert not set(windows) & set(held_out)
    assert [windows.index(probe) for probe in probes] == [3, 9, 15]


@pytest.mark.parametrize(("tokens", "counts"), [(40, (1, 0, 1)), (80, (1, 1, 1)), (120, (2, 1, 2)), (400, (8, 2, 3))])
def test_short_texts_keep_most_windows_to_count_in(tokens, counts):
    own = Calibration(quantized_tiny_llama(), random_tokens(tokens), window=40, progress=False)
    assert (len(own.windows), len(own.held_out), len(own.probe_windows)) == counts
