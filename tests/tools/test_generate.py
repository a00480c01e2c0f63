"""`zigpass generate` on a tiny model."""

import pytest
import torch
from typer.testing import CliRunner

from tests.models import WORDS, quantized_tiny_llama
from zigpass import save_pretrained
from zigpass.cli import app
from zigpass.runtime import ZigpassError


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """The tiny model packed, with its tokenizer."""
    from transformers import AutoTokenizer

    packed = tmp_path_factory.mktemp("packed")
    save_pretrained(quantized_tiny_llama(0.05), packed)
    AutoTokenizer.from_pretrained(folder).save_pretrained(packed)
    return packed


def run(*args):
    torch._dynamo.reset()
    result = CliRunner().invoke(app(), ["generate", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_it_streams_words_and_says_how_fast_it_was(packed):
    out = run(packed, "w5 w6 w7", "--max-new-tokens", 6, "--no-compile")
    assert "6 tokens; prefill" in out
    assert len([word for word in out.split() if word in WORDS]) == 6


def test_the_compiled_model_gives_the_same_words(packed):
    plain, compiled = (run(packed, "w5 w6", "--max-new-tokens", 5, flag) for flag in ("--no-compile", "--compile"))
    assert plain.splitlines()[0] == compiled.splitlines()[0]


def test_sampling_needs_a_temperature(packed):
    with pytest.raises(ZigpassError, match="give a --temperature above 0 too"):
        run(packed, "w5", "--top-k", 5)
    assert run(packed, "w5", "--temperature", 2, "--seed", 1, "--max-new-tokens", 4, "--no-compile")
