"""A model whose weights stay in their file: the same numbers, one linear in memory at a time."""

import gc
import weakref

import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.allocations import ALLOCATIONS
from zigpass.calibrate import calibrate
from zigpass.evaluate import evaluate
from zigpass.linear import find_linears, repack_
from zigpass.load_packed import _read_packed, from_pretrained
from zigpass.runtime import ZigpassError
from zigpass.save import save_pretrained
from zigpass.sites import find_sites
from zigpass.streamed import StreamedLinear

TEXT = random_tokens(1200)
OPTIONS = {"window": 96, "num_windows": 4, "progress": False}


@pytest.fixture
def folder(tmp_path):
    save_pretrained(quantized_tiny_llama(layers=4, tie_word_embeddings=True), tmp_path)
    return tmp_path


@pytest.fixture
def most_read(monkeypatch):
    """The largest number of packed linears that were in memory at once, as a list of one number."""
    alive, most = set(), [0]

    def read(*args):
        packed = _read_packed(*args)
        key = object()
        alive.add(key)
        weakref.finalize(packed.tensors[0], alive.discard, key)
        most[0] = max(most[0], len(alive))
        return packed

    monkeypatch.setattr("zigpass.load_packed._read_packed", read)
    return most


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_calibrating_from_the_file_gives_the_same_thresholds(folder, allocation, most_read):
    streamed = from_pretrained(folder, stream=True)
    assert all(isinstance(linear, StreamedLinear) and linear.codes.is_meta for _, linear in find_linears(streamed))
    found = calibrate(streamed, TEXT, 0.5, allocation=allocation, **OPTIONS)
    gc.collect()
    linears_of_a_block = 7
    assert 1 <= most_read[0] < linears_of_a_block
    assert all(linear.codes.is_meta for _, linear in find_linears(streamed))
    whole = from_pretrained(folder)
    expected = calibrate(whole, TEXT, 0.5, allocation=allocation, **OPTIONS)
    assert (found.fingerprint, found.allocation) == (expected.fingerprint, expected.allocation)
    for name, site in expected.sites.items():
        assert torch.equal(found.sites[name].threshold, site.threshold)
    own, other = (evaluate(model, TEXT, prefix=48, **OPTIONS) for model in (streamed, whole))
    assert own == other


def test_thresholds_of_the_file_come_along(tmp_path):
    model = quantized_tiny_llama(threshold=0.125)
    save_pretrained(model, tmp_path)
    streamed = from_pretrained(tmp_path, stream=True)
    assert all(site.threshold.tolist() == [0.125] for site in find_sites(streamed).values())
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(streamed(ids).logits, model(ids).logits)
        assert torch.equal(streamed(ids[:, :1]).logits, model(ids[:, :1]).logits)


def test_a_streamed_model_can_be_saved_with_its_thresholds(folder, tmp_path):
    streamed = from_pretrained(folder, stream=True)
    calibrate(streamed, TEXT, 0.5, allocation="uniform", **OPTIONS)
    save_pretrained(streamed, tmp_path / "sparse")
    again = from_pretrained(tmp_path / "sparse")
    ids = torch.arange(3)[None, :1]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, streamed(ids).logits)


def test_a_file_that_is_gone_is_named(folder):
    streamed = from_pretrained(folder, stream=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ZigpassError, match=r"model.layers.0.* cannot be read again, a streamed model needs its files"):
        streamed(torch.arange(3)[None])


def test_a_streamed_model_is_not_repacked(folder):
    streamed = from_pretrained(folder, stream=True)
    with pytest.raises(ZigpassError, match="stays as its file has it"):
        repack_(streamed, 128)
