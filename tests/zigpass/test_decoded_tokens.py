import sys

import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.decoded_tokens import TokenValue, decoded_tokens
from zigpass.generate import generate
from zigpass.sampling import TokenPicker


class CountingStep:
    """Logits [1, 1, 50] whose most likely token is the one after its token."""

    def __init__(self):
        self.steps = 0

    def __call__(self, token):
        self.steps += 1
        return torch.nn.functional.one_hot(token + 1, 50).float()


def tokens_of(step, count, ahead):
    first = torch.tensor([[7]])
    return decoded_tokens(step, TokenPicker(None, first.device), first, count, ahead)


@pytest.mark.parametrize("ahead", [0, 1, 2, 20])
def test_every_token_comes_once_and_no_step_is_taken_too_many(ahead):
    step = CountingStep()
    assert list(tokens_of(step, 9, ahead)) == list(range(8, 17))
    assert step.steps == 9


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_steps_are_launched_ahead_of_the_token_that_is_read(ahead):
    step = CountingStep()
    tokens, launched = tokens_of(step, 9, ahead), []
    for _ in range(4):
        next(tokens)
        launched.append(step.steps)
    assert launched == [1 + ahead, 2 + ahead, 3 + ahead, 4 + ahead]


def test_nothing_is_launched_where_no_token_is_wanted():
    step = CountingStep()
    assert list(tokens_of(step, 0, 1)) == []
    assert step.steps == 0


@pytest.mark.cuda
def test_a_value_is_that_of_its_time():
    token = torch.tensor([[5]], device="cuda")
    value = TokenValue(token)
    token += 1
    assert value.read() == 5
    assert TokenValue(token).read() == 6


@pytest.mark.cuda
def test_reading_late_changes_no_token(monkeypatch):
    model, ids = quantized_tiny_llama(0.05).cuda(), random_tokens(7)[None].cuda()
    expected = generate(model, ids, max_new_tokens=12).tokens.tolist()
    end = expected[5]
    for ahead in (0, 1, 3):
        monkeypatch.setattr(sys.modules["zigpass.generate"], "STEPS_AHEAD", ahead)
        whole = generate(model, ids, max_new_tokens=12, cuda_graph=True)
        ended = generate(model, ids, max_new_tokens=12, cuda_graph=True, end_tokens={end})
        assert whole.tokens.tolist() == expected
        assert whole.decode_steps == 11
        assert ended.tokens.tolist() == expected[: expected.index(end)]
        assert ended.decode_steps == expected.index(end)
