from types import SimpleNamespace

import pytest
import torch

from tests.models import tiny_llama
from zigpass.runtime import ZigpassError
from zigpass.tokens import encode, fingerprint_of, first_tokens, spread_windows, text_windows


class CountingTokenizer:
    """One token a word, its length."""

    def __call__(self, text, return_tensors, verbose):
        class Encoding:
            input_ids = torch.tensor([[len(word) for word in text.split()]])

        return Encoding()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def test_texts_are_read_as_one(model):
    assert encode(["a bb", "ccc"], CountingTokenizer(), model).tolist() == [1, 2, 3]


def test_token_ids_are_taken_as_they_are(model):
    assert encode(torch.tensor([[1, 2], [3, 4]]), None, model).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("empty", ["", " \n", [], ["", "\t"]])
def test_empty_text_is_refused(model, empty):
    with pytest.raises(ZigpassError, match="the text is empty"):
        encode(empty, CountingTokenizer(), model)


def test_no_tokens_are_refused(model):
    with pytest.raises(ZigpassError, match="the text has no tokens"):
        encode(torch.tensor([]), None, model)


def test_a_tokenizer_of_another_model_is_refused(model):
    with pytest.raises(ZigpassError, match="gives token 97, the model has 97"):
        encode("x" * 97, CountingTokenizer(), model)


def test_a_model_that_does_not_say_where_it_is_from_needs_a_tokenizer(model):
    with pytest.raises(ZigpassError, match="pass tokenizer="):
        encode("text", None, model)


def test_a_missing_tokenizer_is_not_downloaded(model):
    model.config._name_or_path = "nobody/nothing"
    try:
        with pytest.raises(ZigpassError, match="found no tokenizer of 'nobody/nothing' on this machine"):
            encode("text", None, model)
    finally:
        model.config._name_or_path = ""


def test_windows_are_spread_over_the_text():
    windows = spread_windows(torch.arange(100), 10, 3)
    assert windows[:, 0].tolist() == [0, 45, 90]
    assert windows.shape == (3, 10)


def test_fewer_windows_where_the_text_is_short():
    assert spread_windows(torch.arange(25), 10, 8).shape == (2, 10)


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ZigpassError, match="the text has 9 tokens, one window needs 10"):
        spread_windows(torch.arange(9), 10, 1)


def words(length, count):
    return " ".join(["x" * length] * count)


def test_each_of_several_texts_gives_as_many_windows(model):
    windows = text_windows([words(2, 1000), "", words(3, 60), words(4, 100)], CountingTokenizer(), model, 10, 7)
    assert windows.tolist() == [[2] * 10] * 2 + [[3] * 10] * 2 + [[4] * 10] * 3


@pytest.mark.parametrize("texts", [[words(2, 90), words(3, 10)], [words(i, 10) for i in range(2, 12)]])
def test_short_texts_are_read_as_one(model, texts):
    windows = text_windows(texts, CountingTokenizer(), model, 10, 4)
    assert windows.tolist() == text_windows("\n".join(texts), CountingTokenizer(), model, 10, 4).tolist()


def test_fingerprint_tells_texts_apart():
    assert fingerprint_of(torch.arange(5)) == fingerprint_of(torch.arange(5))
    assert fingerprint_of(torch.arange(5)) != fingerprint_of(torch.arange(1, 6))


def test_every_window_begins_as_a_text_does():
    model = tiny_llama()
    assert isinstance(model.config.bos_token_id, int)
    text = torch.tensor([model.config.bos_token_id, *range(10, 40)])
    first = first_tokens(text, model)
    assert first.tolist() == [model.config.bos_token_id]
    windows = spread_windows(text, 11, 3, first)
    assert windows.tolist() == [[*first.tolist(), *range(start, start + 10)] for start in (10, 20, 30)]
    with pytest.raises(ZigpassError, match="the text has 30 tokens, one window needs 31"):
        spread_windows(text, 32, 1, first)


def test_a_text_may_begin_with_two_tokens(model):
    class Tokenizer(CountingTokenizer):
        all_special_ids = (90, 91, 92)

    text = torch.tensor([90, 92, *range(10, 40)])
    first = first_tokens(text, model, Tokenizer())
    assert first.tolist() == [90, 92]
    assert spread_windows(text, 12, 3, first).tolist() == [
        [90, 92, *range(start, start + 10)] for start in (10, 20, 30)
    ]
    assert first_tokens(torch.tensor([90, 90, 10]), model, Tokenizer()).tolist() == [90]


def test_a_config_without_a_single_first_token_counts_none():
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(bos_token_id=[10, 11])
    assert first_tokens(torch.arange(10, 40), model).numel() == 0


def test_a_text_may_begin_with_its_own_words(model):
    text = torch.arange(10, 40)
    assert first_tokens(text, model).numel() == 0
    assert first_tokens(text, torch.nn.Linear(1, 1)).numel() == 0
    assert spread_windows(text, 10, 3, first_tokens(text, model)).tolist() == spread_windows(text, 10, 3).tolist()
