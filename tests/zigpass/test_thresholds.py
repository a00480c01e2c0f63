import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.calibrate import calibrate
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites
from zigpass.thresholds import Thresholds


@pytest.fixture(scope="module")
def thresholds():
    return calibrate(quantized_tiny_llama(), random_tokens(600), window=96, num_windows=2, progress=False)


@pytest.fixture
def path(thresholds, tmp_path):
    path = tmp_path / "thresholds.safetensors"
    thresholds.save(path)
    return path


def test_a_file_reads_back(thresholds, path):
    loaded = Thresholds.load(path)
    assert loaded.sites.keys() == thresholds.sites.keys()
    for name, site in thresholds.sites.items():
        assert torch.equal(loaded.sites[name].threshold, site.threshold)
        assert loaded.sites[name].realized_sparsity == site.realized_sparsity
    assert dataclasses.replace(loaded, sites={}) == dataclasses.replace(thresholds, sites={})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_loaded_thresholds_apply(path):
    model = quantized_tiny_llama()
    Thresholds.load(path).apply(model)
    assert all(float(site.threshold) > 0 for site in find_sites(model).values())


def test_another_model_is_refused_with_every_reason_and_stays_untouched(thresholds):
    model = quantized_tiny_llama(layers=1, threshold=0.25)
    with pytest.raises(ZigpassError) as caught:
        thresholds.apply(model)
    message = str(caught.value)
    assert "do not fit the model; calibrate it" in message
    for site in ("self_attn.attn_in", "self_attn.attn_out", "mlp.mlp_in", "mlp.mlp_mid"):
        assert f"model.layers.1.{site}: the model has no such site" in message
    assert all(site.threshold.tolist() == [0.25] for site in find_sites(model).values())


def test_other_weights_of_the_same_shape_are_refused(thresholds):
    model = quantized_tiny_llama()
    model.model.layers[0].mlp.up_proj.codes.fill_(0)
    with pytest.raises(ZigpassError, match="the weights have another fingerprint"):
        thresholds.apply(model)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ZigpassError, match=r"thresholds.safetensors: truncated or not a safetensors file"):
        Thresholds.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(
        ZigpassError, match=r"weights.safetensors: a safetensors file, but not one of zigpass thresholds"
    ):
        Thresholds.load(path)
    path.write_text("hello")
    with pytest.raises(ZigpassError, match="truncated or not a safetensors file"):
        Thresholds.load(path)
    with pytest.raises(ZigpassError, match="no such file"):
        Thresholds.load(tmp_path / "missing")


def test_an_unknown_version_is_refused(thresholds, tmp_path, monkeypatch):
    path = tmp_path / "new.safetensors"
    monkeypatch.setattr("zigpass.thresholds.FILE_VERSION", 2)
    thresholds.save(path)
    monkeypatch.undo()
    with pytest.raises(ZigpassError, match="thresholds file version 2, this zigpass reads version 1"):
        Thresholds.load(path)


def test_a_path_that_cannot_be_written_is_named(thresholds, tmp_path):
    with pytest.raises(ZigpassError, match="cannot write the thresholds"):
        thresholds.save(tmp_path / "no such folder" / "t.safetensors")


def test_per_channel_thresholds_travel(thresholds, tmp_path):
    name = "model.layers.0.mlp.mlp_mid"
    vector = dataclasses.replace(thresholds.sites[name], threshold=torch.rand(96))
    changed = dataclasses.replace(thresholds, sites={**thresholds.sites, name: vector})
    changed.save(tmp_path / "t.safetensors")
    model = quantized_tiny_llama()
    Thresholds.load(tmp_path / "t.safetensors").apply(model)
    assert torch.equal(find_sites(model)[name].threshold, vector.threshold)
    wrong = dataclasses.replace(thresholds.sites[name], threshold=torch.rand(95))
    with pytest.raises(ZigpassError, match=r"mlp_mid: 95 thresholds for 96 features"):
        dataclasses.replace(thresholds, sites={**thresholds.sites, name: wrong}).apply(model)
