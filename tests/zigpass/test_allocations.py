"""Allocations on a tiny model, whose sites differ by construction."""

import logging

import pytest
import torch
from torch import nn

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.allocations import ALLOCATIONS
from zigpass.allocations.teal import STEP
from zigpass.calibrate import budget_of, calibrate, find_thresholds
from zigpass.calibration import Calibration
from zigpass.config import ZigzagConfig
from zigpass.decode_like import DecodeLike
from zigpass.evaluate import evaluate
from zigpass.observe import observe_sites, site_readers
from zigpass.quantize import quantize_
from zigpass.rules import RULES
from zigpass.runtime import ZigpassError
from zigpass.sites import dense, find_sites
from zigpass.thresholds import Thresholds

TEXT = random_tokens(1200)
OPTIONS = {"window": 96, "num_windows": 4, "progress": False}


def calibration(model=None, **kwargs):
    return Calibration(model or quantized_tiny_llama(), TEXT, **OPTIONS, **kwargs)


def uneven_llama():
    """A model in which dropping entries of the last MLP costs far more than any other."""
    model = quantized_tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.scale.mul_(8)
        model.model.layers[0].mlp.down_proj.scale.mul_(0.01)
    return model


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("target", [0.25, 0.5, 0.8])
def test_every_allocation_meets_the_target_in_bytes(allocation, target):
    model = uneven_llama()
    thresholds = calibrate(model, TEXT, target, allocation=allocation, **OPTIONS)
    num_bytes = calibration(model).num_bytes
    realized = {name: site.realized_sparsity for name, site in thresholds.sites.items()}
    share = sum(num_bytes[name] * realized[name] for name in realized) / sum(num_bytes.values())
    assert share == pytest.approx(target, abs=2e-3)
    assert max(site.target_sparsity for site in thresholds.sites.values()) <= 0.95
    assert all(
        torch.equal(site.threshold, thresholds.sites[name].threshold) for name, site in find_sites(model).items()
    )


@pytest.mark.parametrize("rule", RULES)
def test_teal_searches_with_every_rule(rule):
    thresholds = calibrate(quantized_tiny_llama(), TEXT, 0.5, allocation="teal", rule=rule, **OPTIONS)
    assert (thresholds.allocation, thresholds.rule) == ("teal", rule)
    assert all(bool(torch.isfinite(site.threshold).all()) for site in thresholds.sites.values())


@pytest.mark.parametrize("allocation", [name for name in ALLOCATIONS if name not in ("uniform", "teal")])
def test_sparsity_goes_where_it_costs_little(allocation):
    thresholds = calibrate(uneven_llama(), TEXT, 0.4, allocation=allocation, **OPTIONS)
    assert thresholds.allocation == allocation
    cheap, dear = (thresholds.sites[f"model.layers.{layer}.mlp.mlp_mid"].target_sparsity for layer in (0, 1))
    assert cheap > 0.8
    assert dear < 0.4


def test_teal_spreads_inside_each_block():
    model = uneven_llama()
    thresholds = calibrate(model, TEXT, 0.4, allocation="teal", **OPTIONS)
    own = calibration(model)
    for layer in range(2):
        names = [name for name in own.sites if f".{layer}." in name]
        total = sum(own.num_bytes[name] for name in names)
        share = sum(own.num_bytes[name] * thresholds.sites[name].target_sparsity for name in names) / total
        assert share == pytest.approx(0.4, abs=STEP / 10)
    assert thresholds.sites["model.layers.0.mlp.mlp_mid"].target_sparsity > 0.8


def test_measured_is_the_default_and_repeats():
    first, second = (calibrate(uneven_llama(), TEXT, 0.5, **OPTIONS) for _ in range(2))
    assert first.allocation == "measured"
    assert {name: site.target_sparsity for name, site in first.sites.items()} == {
        name: site.target_sparsity for name, site in second.sites.items()
    }


def test_a_site_that_is_mostly_zero_is_probed_among_its_other_entries():
    """As after ReLU: half of the entries of one site are 0, and dropping only those would cost nothing."""
    model = quantized_tiny_llama(hidden_act="relu")
    own = calibration(model)
    measured = find_thresholds(own, ALLOCATIONS["measured"], RULES["magnitude"], budget_of(own, 0.5))
    kls = own.state.stage("measured magnitude")
    assert all(kl > 0 for kl in kls.values())
    assert all(0.5 < site.target_sparsity < 0.95 for name, site in measured.sites.items() if name.endswith("mlp_mid"))


def spread_with_held_out_kls(monkeypatch, *kls):
    """`kls` of the candidates: measured, half uniform, half sensitivity, uniform."""
    values = iter(kls)
    monkeypatch.setattr(Calibration, "held_out_kl", lambda self, rule, sparsity: next(values))
    return calibrate(uneven_llama(), TEXT, 0.5, **OPTIONS)


def test_measured_gives_way_to_uniform_where_it_loses_more(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "zigpass.calibrate"):
        thresholds = spread_with_held_out_kls(monkeypatch, 0.3, 0.25, 0.28, 0.2)
    assert thresholds.allocation == "uniform"
    assert all(site.target_sparsity == pytest.approx(0.5) for site in thresholds.sites.values())
    assert "loses more than the uniform one on held-out calibration text (KL 0.2500 and 0.2000" in caplog.text
    assert "uniform is used" in caplog.text


def test_measured_goes_half_of_the_way_where_that_loses_least(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "zigpass.calibrate"):
        half = spread_with_held_out_kls(monkeypatch, 0.3, 0.1, 0.2, 0.2)
    whole = spread_with_held_out_kls(monkeypatch, 0.1, 0.3, 0.2, 0.2)
    assert half.allocation == whole.allocation == "measured"
    assert not caplog.text
    assert max(abs(site.target_sparsity - 0.5) for site in whole.sites.values()) > 0.3
    for name, site in half.sites.items():
        assert site.target_sparsity == pytest.approx((0.5 + whole.sites[name].target_sparsity) / 2)


def test_measured_goes_halfway_to_sensitivity_where_that_loses_least(monkeypatch):
    half = spread_with_held_out_kls(monkeypatch, 0.3, 0.2, 0.1, 0.2)
    whole = spread_with_held_out_kls(monkeypatch, 0.1, 0.3, 0.2, 0.2)
    sensitive = calibrate(uneven_llama(), TEXT, 0.5, allocation="sensitivity", **OPTIONS)
    assert half.allocation == "measured"
    for name, site in half.sites.items():
        ends = [other.sites[name].target_sparsity for other in (whole, sensitive)]
        assert site.target_sparsity == pytest.approx(sum(ends) / 2)


def test_a_model_that_cannot_be_differentiated_is_measured_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr(type(uneven_llama()), "get_input_embeddings", lambda self: None)
    with caplog.at_level(logging.WARNING, "zigpass.calibrate"):
        assert spread_with_held_out_kls(monkeypatch, 0.1, 0.2, 0.3).allocation == "measured"
    assert "no candidate by sensitivity: LlamaForCausalLM has no get_input_embeddings()" in caplog.text


def test_gradients_that_torch_refuses_leave_a_candidate_out(monkeypatch, caplog):
    head = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: head(self, x).detach())  # the output head's
    with caplog.at_level(logging.WARNING, "zigpass.calibrate"):
        assert spread_with_held_out_kls(monkeypatch, 0.1, 0.2, 0.3).allocation == "measured"
    assert "no candidate by sensitivity: element 0 of tensors does not require grad" in caplog.text


def test_a_measurement_in_the_middle_equals_one_from_the_start(monkeypatch):
    from zigpass.allocations.measured import measure_sites

    def measure():
        own = calibration(uneven_llama())
        return measure_sites(own, RULES["magnitude"], list(own.sites))

    shortcut = measure()
    monkeypatch.setattr("zigpass.calibration.block_name", lambda model, name: None)
    assert measure() == pytest.approx(shortcut, rel=1e-4)


def test_chosen_sites_pins_and_caps():
    model = uneven_llama()
    thresholds = calibrate(
        model,
        TEXT,
        0.4,
        sites=("mlp_in", "mlp_mid"),
        pinned={"model.layers.0.mlp.mlp_in": 0.2},
        max_sparsity={"mlp_mid": 0.6},
        **OPTIONS,
    )
    targets = {name: site.target_sparsity for name, site in thresholds.sites.items()}
    assert all(targets[name] == 0 for name in targets if "attn" in name)
    assert targets["model.layers.0.mlp.mlp_in"] == 0.2
    assert targets["model.layers.0.mlp.mlp_mid"] == 0.6  # the cheapest one, up to its cap
    own = calibration(model, sites=("mlp_in", "mlp_mid"))
    assert budget_of(own, 0.4).mean({name: targets[name] for name in own.sites}) == pytest.approx(0.4)


def test_an_impossible_budget_says_what_is_possible():
    with pytest.raises(ZigpassError, match=r"0.96 cannot be met: pinned sites and max_sparsity allow 0.000 to 0.950"):
        calibrate(quantized_tiny_llama(), TEXT, 0.96, **OPTIONS)
    with pytest.raises(ZigpassError, match=r"0.1 cannot be met: .* allow 0.500 to 0.500"):
        calibrate(quantized_tiny_llama(), TEXT, 0.1, pinned={"*": 0.5}, **OPTIONS)


def test_pins_alone_need_no_measurement(monkeypatch):
    monkeypatch.setattr("zigpass.allocations.measured.measure_sites", None)
    thresholds = calibrate(quantized_tiny_llama(), TEXT, 0.5, pinned={"*": 0.5}, **OPTIONS)
    assert {site.target_sparsity for site in thresholds.sites.values()} == {0.5}


def test_a_text_of_one_window_can_be_calibrated_uniformly_only():
    model = quantized_tiny_llama()
    with pytest.raises(ZigpassError, match="needs a text of at least two windows of 96 tokens"):
        calibrate(model, TEXT[:150], 0.5, **OPTIONS)
    assert calibrate(model, TEXT[:150], 0.5, allocation="uniform", **OPTIONS).num_tokens == 23


def test_a_model_without_a_cache_can_be_calibrated_uniformly_only():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up_proj = nn.Embedding(97, 8), nn.Linear(8, 8)

        def forward(self, ids, use_cache):
            return self.up_proj(self.embed(ids))

    model = quantize_(Plain(), ZigzagConfig(group_size=8), progress=False)
    with pytest.raises(ZigpassError, match="Plain takes no key-value cache"):
        calibrate(model, TEXT, **OPTIONS)
    with pytest.raises(ZigpassError, match="mlp_in is in no repeated block of the model"):
        calibrate(model, TEXT, allocation="teal", **OPTIONS)
    with pytest.raises(ZigpassError, match="Plain takes no key-value cache"):
        calibrate(model, TEXT, allocation="uniform", recalibrate=True, **OPTIONS)
    assert calibrate(model, TEXT, allocation="uniform", **OPTIONS).sites.keys() == {"mlp_in"}


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path, decode_runs):
    model, path = uneven_llama(), tmp_path / "state.json"
    for site in find_sites(model).values():
        site.set_threshold(0.125)
    expected = calibrate(uneven_llama(), TEXT, 0.5, **OPTIONS)
    decode_runs.clear()
    decode_runs.interrupt_at = 5
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, TEXT, 0.5, resume=path, **OPTIONS)
    assert all(site.threshold.tolist() == [0.125] for site in find_sites(model).values())
    resumed = calibrate(model, TEXT, 0.5, resume=path, **OPTIONS)
    assert sum(start is not None for start in decode_runs) == len(resumed.sites)
    for name, site in expected.sites.items():
        assert torch.equal(resumed.sites[name].threshold, site.threshold)
    before = len(decode_runs)
    calibrate(model, TEXT, 0.3, resume=path, **OPTIONS)
    assert all(start is None for start in decode_runs[before:])
    before = len(decode_runs)
    again = calibrate(model, TEXT, 0.5, resume=path, **OPTIONS)
    assert len(decode_runs) == before  # placed thresholds and what candidates lose are kept too
    assert all(torch.equal(again.sites[name].threshold, site.threshold) for name, site in expected.sites.items())


def test_thresholds_are_placed_on_activations_after_sparse_sites():
    model = uneven_llama()

    def realized(thresholds):
        """On the calibration windows, as decoding sees them."""
        below, total = dict.fromkeys(thresholds.sites, 0), dict.fromkeys(thresholds.sites, 0)

        def count(site, x):
            below[site.name] += int(site.inactive(x).sum())
            total[site.name] += x.numel()

        thresholds.apply(model)
        own = calibration(model)
        for ids in own.windows:
            run = DecodeLike(model, ids[None, : own.decoded], own.prefix)
            with observe_sites(site_readers(model), count):
                run.run()
        return {name: below[name] / total[name] for name in total}

    sparse, dense = (
        calibrate(model, TEXT, 0.7, allocation="uniform", recalibrate=recalibrate, **OPTIONS)
        for recalibrate in (True, False)
    )
    for name, share in realized(sparse).items():
        assert share == pytest.approx(0.7, abs=2e-3), name
        assert sparse.sites[name].realized_sparsity == pytest.approx(0.7, abs=1e-6)
    assert any(abs(share - 0.7) > 0.01 for share in realized(dense).values())


@pytest.mark.parametrize("allocation", ["measured", "uniform"])
def test_a_fixed_count_of_entries_instead_of_a_threshold(allocation, tmp_path):
    model = uneven_llama()
    thresholds = calibrate(model, TEXT, 0.4, allocation=allocation, selection="top_k", **OPTIONS)
    for name, site in find_sites(model).items():
        count = thresholds.sites[name].threshold
        assert count.dtype == torch.int32
        assert int(count) == pytest.approx(site.features * (1 - thresholds.sites[name].target_sparsity), abs=0.5)
        assert thresholds.sites[name].realized_sparsity == 1 - int(count) / site.features
        x = torch.randn(3, site.features, generator=torch.Generator().manual_seed(0))
        assert (~site.inactive(x)).sum(-1).tolist() == [int(count)] * 3
    thresholds.save(tmp_path / "counts.safetensors")
    again = Thresholds.load(tmp_path / "counts.safetensors")
    assert all(torch.equal(again.sites[name].threshold, site.threshold) for name, site in thresholds.sites.items())
    quality = evaluate(model, TEXT, prefix=48, window=96, num_windows=2, progress=False)
    assert quality.realized_sparsity == pytest.approx(
        {name: site.realized_sparsity for name, site in thresholds.sites.items()}
    )
    ids = random_tokens(5, seed=3)[None]
    decoded = DecodeLike(model, torch.cat([random_tokens(20)[None], ids], 1), 20).run()
    with torch.no_grad():
        cache = None
        with dense(model):
            cache = model(random_tokens(20)[None], use_cache=True).past_key_values
        steps = []
        for token in ids[0, :-1]:
            output = model(token.view(1, 1), past_key_values=cache, use_cache=True)
            steps.append(output.logits[0, -1].log_softmax(-1))
    torch.testing.assert_close(decoded[0], torch.stack(steps), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("allocation", ["teal", "sensitivity"])
def test_every_allocation_takes_counts(allocation):
    thresholds = calibrate(uneven_llama(), TEXT, 0.4, allocation=allocation, selection="top_k", **OPTIONS)
    assert all(site.threshold.dtype == torch.int32 for site in thresholds.sites.values())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"allocation": "greedy"}, "allocation must be one of measured, uniform, teal, sensitivity, got 'greedy'"),
        ({"rule": "wina"}, "rule must be one of magnitude, column_norm, sensitivity, got 'wina'"),
        ({"selection": "k"}, "selection must be one of threshold, top_k, got 'k'"),
        ({"selection": "top_k", "rule": "column_norm"}, "entries of largest magnitude; rule 'column_norm' cannot"),
        ({"sites": ["mlp"]}, "sites: 'mlp' fits no site"),
        ({"max_sparsity": 1.5}, "max_sparsity: .* must be at least 0 and below 1"),
    ],
)
def test_unusable_arguments_are_refused(argument, message):
    with pytest.raises(ZigpassError, match=message):
        calibrate(quantized_tiny_llama(), TEXT, **{**OPTIONS, **argument})
