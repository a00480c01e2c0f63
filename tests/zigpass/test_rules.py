import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.calibrate import calibrate
from zigpass.calibration import Calibration
from zigpass.observe import observe_sites
from zigpass.rules import RULES
from zigpass.rules.rule import fold
from zigpass.sites import find_sites

TEXT = random_tokens(1000)
OPTIONS = {"window": 96, "num_windows": 4, "progress": False}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_folds_to_one_or_k_thresholds_that_meet_the_target(rule):
    model = quantized_tiny_llama()
    thresholds = calibrate(model, TEXT, 0.4, rule=rule, allocation="uniform", recalibrate=False, **OPTIONS)
    assert thresholds.rule == rule
    own = Calibration(model, TEXT, **OPTIONS)
    below = dict.fromkeys(own.sites, 0.0)

    def count(site, x):
        below[site.name] += float((x[:, own.skip :].abs() < site.threshold).float().mean()) / len(own.windows)

    with torch.no_grad(), observe_sites(own.readers, count):
        for ids in own.windows:
            model(ids[None])
    for name, site in find_sites(model).items():
        assert site.threshold.numel() == (1 if rule == "magnitude" else site.features)
        assert below[name] == pytest.approx(0.4, abs=5e-3)


def test_column_norm_takes_all_readers_of_a_site():
    model = quantized_tiny_llama()
    weights = RULES["column_norm"].column_weights(Calibration(model, TEXT, **OPTIONS))
    mlp = model.model.layers[0].mlp
    both = torch.cat([mlp.gate_proj.unpack().dequantize(), mlp.up_proj.unpack().dequantize()])
    assert torch.allclose(weights["model.layers.0.mlp.mlp_in"], both.norm(dim=0))


def test_sensitivity_is_the_gradient_of_the_loss():
    """Against finite differences of the loss with respect to one entry of a site, over one token."""
    from zigpass.gradients import squared_gradients

    model = quantized_tiny_llama()
    own = Calibration(model, TEXT, **OPTIONS)
    window = own.windows[:1]
    last = window.shape[1] - 1
    found = squared_gradients(model, own.readers, window, last, progress=False)  # the last position alone
    name, linear = "model.layers.1.mlp.mlp_mid", model.model.layers[1].mlp.down_proj
    with torch.no_grad():
        logits = model(window).logits[0]
        labels = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]

        def loss(step):
            def shift(module, args):
                x = args[0].clone()
                x[0, last, 5] += step
                return (x,)

            with linear.register_forward_pre_hook(shift):
                return float(
                    torch.nn.functional.cross_entropy(model(window).logits[0].double(), labels, reduction="sum")
                )

        slope = (loss(0.05) - loss(-0.05)) / 0.1
    assert float(found[name][5].sqrt()) == pytest.approx(abs(slope), rel=0.02, abs=1e-5)


def test_blocks_that_run_twice_have_the_same_gradients():
    from zigpass.gradients import squared_gradients

    model = quantized_tiny_llama()
    own = Calibration(model, TEXT, **OPTIONS)
    assert own.blocks == ["model.layers.0", "model.layers.1"]
    once, twice = (
        squared_gradients(model, own.readers, own.probe_windows, 8, blocks=blocks, progress=False)
        for blocks in ((), own.blocks)
    )
    for name, expected in once.items():
        assert torch.equal(twice[name], expected), name
        assert bool((expected > 0).all())


def test_gradients_leave_the_model_as_it_was():
    model = quantized_tiny_llama()
    Calibration(model, TEXT, **OPTIONS).squared_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())


def test_folding():
    assert fold(0.5, None).tolist() == [0.5]
    assert fold(0.5, torch.tensor([1.0, 0.5, 0.0])).tolist() == [0.5, 1.0, torch.finfo(torch.float32).max]
    assert fold(0.0, torch.tensor([1.0, 0.0])).tolist() == [0.0, 0.0]
