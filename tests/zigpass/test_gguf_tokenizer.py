"""Tokenizers of GGUF files that Transformers reads well, badly, and without their first token."""

import pytest
import transformers

from zigpass.gguf_tokenizer import load_gguf_tokenizer
from zigpass.runtime import ZigpassError
from zigpass.tools.gguf_files import write_llama

VOCABULARY = ["<s>", "▁a", "▁ab12", *(f"▁{'word' * 2}{chr(97 + i)}" for i in range(20))]


class Tokenizer:
    """Stands for what Transformers makes of a file."""

    def __init__(self, split=0, add_bos_token=False):
        self.split = {token[1:] for token in VOCABULARY[3 : 3 + split]}
        self.add_bos_token = add_bos_token

    def __len__(self):
        return len(VOCABULARY)

    def convert_ids_to_tokens(self, ids):
        return [VOCABULARY[i] for i in ids]

    def tokenize(self, text):
        word = text[1:]
        return ["▁w", word[1:]] if word in self.split else ["▁" + word]


@pytest.fixture
def load(tmp_path, monkeypatch):
    def load(tokenizer, **flags):
        path = tmp_path / "model.gguf"
        write_llama(path, flags={f"tokenizer.ggml.{name}": value for name, value in flags.items()})
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: tokenizer)
        return load_gguf_tokenizer(path)

    return load


@pytest.mark.parametrize(
    ("flags", "begins"), [({"add_bos_token": True}, True), ({"add_bos_token": False}, False), ({}, False)]
)
def test_texts_begin_as_the_file_says(load, flags, begins):
    assert load(Tokenizer(), **flags).add_bos_token is begins


def test_a_tokenizer_that_adds_a_token_by_itself_is_left_alone(load):
    assert load(Tokenizer(add_bos_token=True)).add_bos_token


def test_a_few_words_may_come_apart(load):
    assert load(Tokenizer(split=9))


def test_a_tokenizer_that_takes_words_apart_is_refused(load):
    message = r"model.gguf: transformers .* wrongly: 11 of 20 words .*'wordworda' as \['▁w', 'ordworda'\]"
    with pytest.raises(ZigpassError, match=message):
        load(Tokenizer(split=11))
