import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.generate import generate


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
