"""Quantizing with feedback, alone and through `quantize_`."""

import pytest
import torch
from torch import nn

from tests.models import random_tokens, tiny_llama
from zigpass.blocks import block_name
from zigpass.config import ZigzagConfig
from zigpass.gram import layers_with_grams
from zigpass.linear import find_linears
from zigpass.quantize import quantize_
from zigpass.quantizers import quantize_weight
from zigpass.runtime import ZigpassError

TEXT = random_tokens(800)
OPTIONS = {"calibration": TEXT, "window": 64, "num_windows": 8, "progress": False}


def correlated(k=192, tokens=1000):
    """Inputs of a few strong directions, as activations are."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(k, k, generator=generator) * torch.logspace(0, -2, k)[:, None]
    return torch.randn(tokens, k, generator=generator) @ mix


@pytest.mark.parametrize(
    "config", [{"scale_axis": "in", "group_size": size} for size in (32, 128, 96, 500)] + [{"scale_axis": "out"}]
)
def test_feedback_lowers_the_error_of_the_output(config):
    weight = torch.randn(300, 192, generator=torch.Generator().manual_seed(1))
    x = correlated()

    def error(method):
        found = quantize_weight(weight, ZigzagConfig(method=method, **config), x.T @ x)
        return float((x @ (found.dequantize() - weight).T).square().sum())

    assert error("gptq") < 0.6 * error("mse")


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_uncorrelated_inputs_leave_nothing_to_feed_back(scale_axis):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    mse, gptq = (
        quantize_weight(weight, ZigzagConfig(method=method, scale_axis=scale_axis, group_size=32), torch.eye(64))
        for method in ("mse", "gptq")
    )
    assert torch.equal(mse.dequantize(), gptq.dequantize())


@pytest.mark.parametrize("gram", [torch.zeros(64, 64), torch.ones(64, 64)])
def test_degenerate_inputs(gram):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    found = quantize_weight(weight, ZigzagConfig(method="gptq", group_size=32), gram).dequantize()
    assert bool(torch.isfinite(found).all())
    if not gram.any():
        assert (found - weight).norm() < 0.11 * weight.norm()


def test_unusable_grams_are_refused():
    weight = torch.randn(8, 8)
    config = ZigzagConfig(method="gptq")
    with pytest.raises(ZigpassError, match="pass calibration= to quantize_"):
        quantize_weight(weight, config)
    for gram in (torch.eye(7), torch.full((8, 8), torch.nan)):
        with pytest.raises(ZigpassError, match="must be finite and 8 x 8"):
            quantize_weight(weight, config, gram)


def logits_error(model):
    ids = random_tokens(200, seed=3).view(2, 100)
    with torch.no_grad():
        expected = tiny_llama()(ids).logits
        return float((model(ids).logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("scale_axis", ["in", "out"])
def test_a_model_comes_out_nearer_to_its_float_self(scale_axis):
    settings = {"scale_axis": scale_axis, "bits": 2, "group_size": 32}
    gptq = quantize_(tiny_llama(), ZigzagConfig(method="gptq", **settings), **OPTIONS)
    mse = quantize_(tiny_llama(), ZigzagConfig(method="mse", **settings), progress=False)
    assert [name for name, _ in find_linears(gptq)] == [name for name, _ in find_linears(mse)]
    assert logits_error(gptq) < 0.97 * logits_error(mse)  # random weights and text: little is correlated


def test_grams_are_those_of_the_inputs_once_earlier_blocks_are_replaced():
    model, changed = tiny_llama(), tiny_llama()
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear and name != "lm_head"]
    windows = TEXT[:192].view(3, 64)
    with torch.no_grad():
        for name in names:
            changed.get_submodule(name).weight.mul_(0.5)
    expected = {}

    def watch(name):
        def hook(module, args):
            x = args[0].flatten(0, 1)
            expected[name] = expected.get(name, 0) + x.T @ x

        return hook

    for name in names:
        reference = tiny_llama()
        with torch.no_grad():
            for other in names:
                if block_name(model, other) < block_name(model, name):
                    reference.get_submodule(other).weight.mul_(0.5)
            with reference.get_submodule(name).register_forward_pre_hook(watch(name)):
                for ids in windows:
                    reference(ids[None])
    seen = []
    for name, gram in layers_with_grams(model, names, windows, progress=False):
        seen.append(name)
        assert torch.allclose(gram, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].max())), name
        with torch.no_grad():
            model.get_submodule(name).weight.mul_(0.5)
    assert sorted(seen) == sorted(names)


def test_layers_outside_the_blocks_come_last():
    model = quantize_(
        tiny_llama(tie_word_embeddings=False),
        ZigzagConfig(method="gptq", group_size=32),
        filter_fn=lambda module, name: True,
        **OPTIONS,
    )
    assert "lm_head" in dict(find_linears(model))
    assert logits_error(model) < 0.2


def test_methods_can_be_mixed():
    model = quantize_(
        tiny_llama(), ZigzagConfig(group_size=32), overrides={"*.mlp.*": ZigzagConfig(method="gptq")}, **OPTIONS
    )
    assert len(list(find_linears(model))) == 14


def test_missing_text_is_an_error_and_the_model_stays_untouched():
    model = tiny_llama()
    with pytest.raises(ZigpassError, match='method "gptq" needs text'):
        quantize_(model, ZigzagConfig(method="gptq"), progress=False)
    assert not list(find_linears(model))


def test_nan_inputs_name_the_layer():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = torch.nan
    with pytest.raises(ZigpassError, match=r"model.layers.1.self_attn.q_proj: its inputs hold NaN"):
        quantize_(model, ZigzagConfig(method="gptq"), **OPTIONS)
