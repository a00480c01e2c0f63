import pytest
import torch

from zigpass.runtime import ZigpassError
from zigpass.sampling import Sampling, TokenPicker, probabilities

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 0.0]])


def test_without_limits_it_is_a_softmax():
    assert torch.allclose(probabilities(LOGITS, Sampling(temperature=2.0)), (LOGITS / 2).softmax(-1))


def test_top_k_leaves_out_the_rest():
    expected = torch.tensor([[0.0, 3.0, 2.0, 0.0]]).masked_fill(torch.tensor([[True, False, False, True]]), -torch.inf)
    assert torch.allclose(probabilities(LOGITS, Sampling(top_k=2)), expected.softmax(-1))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, [1]), (0.6, [1]), (0.7, [1, 2]), (0.9, [1, 2, 0]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    chances = probabilities(LOGITS, Sampling(top_p=top_p))
    assert sorted(kept) == chances[0].nonzero().flatten().tolist()
    assert torch.allclose(chances.sum(), torch.ones(()))


def test_half_precision_logits_are_sampled_in_float32():
    assert probabilities(LOGITS.bfloat16(), Sampling()).dtype == torch.float32


def test_the_most_likely_token_without_sampling():
    picker = TokenPicker(None, torch.device("cpu"))
    assert picker.pick(torch.stack([LOGITS.flip(-1), LOGITS], 1)).tolist() == [[1]]


def test_draws_follow_the_probabilities():
    picker = TokenPicker(Sampling(top_k=2, seed=1), torch.device("cpu"))
    draws = [int(picker.pick(LOGITS[None])) for _ in range(2000)]
    assert set(draws) == {1, 2}
    assert abs(draws.count(1) / 2000 - 0.7311) < 0.04  # four standard deviations


def test_values_out_of_range_are_named_together():
    with pytest.raises(ZigpassError) as raised:
        Sampling(temperature=0, top_k=-1, top_p=1.5)
    assert str(raised.value) == (
        "temperature must be above 0, got 0 (leave sampling out to decode greedily);"
        " top_k must be 0 (all tokens) or more, got -1; top_p must be in (0, 1], got 1.5"
    )
