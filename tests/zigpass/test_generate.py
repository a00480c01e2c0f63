import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass import Sampling, ZigpassError
from zigpass.generate import Generation, generate


def test_greedy_tokens_are_those_of_the_whole_sequence():
    model, ids = quantized_tiny_llama(), random_tokens(7)[None]
    result = generate(model, ids, max_new_tokens=6)
    with torch.no_grad():
        for token in result.tokens:
            assert int(model(ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, token.view(1, 1)], 1)
    assert result.decode_steps == 5
    assert result.tokens_per_second > 0


def test_an_end_token_ends_the_answer():
    model, ids = quantized_tiny_llama(), random_tokens(7)[None]
    tokens = generate(model, ids, max_new_tokens=6).tokens
    end = int(tokens[3])
    first = tokens.tolist().index(end)
    assert generate(model, ids, max_new_tokens=6, end_tokens={end}).tokens.tolist() == tokens[:first].tolist()


def test_the_decode_callable_takes_the_steps():
    model, steps = quantized_tiny_llama(), []

    def decode(token, **kwargs):
        steps.append(token.shape)
        return model(token, **kwargs)

    generate(model, random_tokens(7)[None], max_new_tokens=4, decode=decode, cache_length=32)
    assert steps == [(1, 1)] * 3


def test_sampling_follows_its_seed():
    model, ids = quantized_tiny_llama(), random_tokens(7)[None]
    settings = {"max_new_tokens": 12}
    first, again, other = (
        generate(model, ids, sampling=Sampling(seed=seed), **settings).tokens.tolist() for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_sampling_among_one_token_is_greedy():
    model, ids = quantized_tiny_llama(), random_tokens(7)[None]
    greedy = generate(model, ids, max_new_tokens=5).tokens
    assert generate(model, ids, max_new_tokens=5, sampling=Sampling(top_k=1)).tokens.equal(greedy)


class Recorder:
    def __init__(self):
        self.put_values, self.ended = [], False

    def put(self, value):
        self.put_values.append(value.tolist())

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_every_token():
    model, ids, recorder = quantized_tiny_llama(), random_tokens(7)[None], Recorder()
    tokens = generate(model, ids, max_new_tokens=4, streamer=recorder).tokens.tolist()
    assert recorder.put_values == [ids.tolist(), *([token] for token in tokens)]
    assert recorder.ended


def test_the_summary_says_how_fast_it_was():
    assert Generation(torch.arange(4), 0.5, 2.0, 3).summary == "4 tokens; prefill 0.50 s, decode 1.5 tokens/s"
    assert Generation(torch.arange(1), 0.5, 0.0, 0).summary == "1 tokens; prefill 0.50 s, no decode step"


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ZigpassError) as raised:
        generate(
            quantized_tiny_llama(), torch.zeros(2, 3).long(), max_new_tokens=0, cache_length=1, cuda_graph=True
        )  # fmt: skip
    assert str(raised.value) == (
        "prompt is (2, 3), expected one sequence [1, T] of at least one token;"
        " max_new_tokens must be at least 1, got 0;"
        " cache_length 1 is too short: prompt and new tokens need 3;"
        " cuda_graph=True needs the model and the prompt on a GPU, the prompt is on cpu"
    )
