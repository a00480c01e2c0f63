import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.decode_step import WARM_UP_STEPS, DecodeStep
from zigpass.generate import generate
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites


def prefilled(model, ids, length=32):
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=length)
    with torch.inference_mode():
        model(ids, past_key_values=cache, use_cache=True)
    return cache


def test_a_step_moves_the_cache_on_by_one():
    model, ids = quantized_tiny_llama(), random_tokens(7)[None]
    step = DecodeStep(model, prefilled(model, ids[:, :5]), cuda_graph=False)
    with torch.inference_mode():
        logits = [step(ids[:, position : position + 1]) for position in (5, 6)]
        expected = model(ids).logits[:, 5:]
    torch.testing.assert_close(torch.cat(logits, 1), expected)
    assert step.steps == 2


@pytest.mark.cuda
def test_a_replayed_step_gives_what_a_plain_one_gives():
    model = quantized_tiny_llama(0.05).to("cuda", torch.bfloat16)
    ids = random_tokens(7)[None].cuda()
    following = random_tokens(WARM_UP_STEPS + 6, seed=1).cuda()
    steps = [DecodeStep(model, prefilled(model, ids), cuda_graph=graph) for graph in (False, True)]
    with torch.inference_mode():
        for token in following:
            plain, replayed = (step(token.view(1, 1)).clone() for step in steps)
            assert torch.equal(plain, replayed)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_a_compiled_model_generates_the_same_with_cuda_graphs(mode):
    torch._dynamo.reset()
    model = quantized_tiny_llama(0.05).cuda()
    ids = random_tokens(7)[None].cuda()
    expected = generate(model, ids, max_new_tokens=10).tokens
    compiled = torch.compile(model, backend="zigpass", mode=mode)
    tokens = generate(model, ids, max_new_tokens=10, decode=compiled, cuda_graph=mode is None).tokens
    assert tokens.tolist() == expected.tolist()


@pytest.mark.cuda
def test_new_thresholds_reach_a_captured_step():
    model = quantized_tiny_llama(0.0).cuda()
    ids = random_tokens(7 + WARM_UP_STEPS + 1)[None].cuda()
    captured = DecodeStep(model, prefilled(model, ids[:, :7]), cuda_graph=True)
    with torch.inference_mode():
        for position in range(7, ids.shape[1]):
            captured(ids[:, position : position + 1])
        token = ids[:, :1]
        unchanged = DecodeStep(model, prefilled(model, ids), cuda_graph=False)(token)
        for site in find_sites(model).values():
            site.set_threshold(0.1)
        expected = DecodeStep(model, prefilled(model, ids), cuda_graph=False)(token)
        changed = captured(token)
    assert not torch.allclose(changed, unchanged, atol=1e-3)
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.cuda
def test_a_step_that_waits_for_the_gpu_cannot_be_captured():
    model = quantized_tiny_llama().cuda()
    ids = random_tokens(7)[None].cuda()

    def decode(token, **kwargs):
        int(token)
        return model(token, **kwargs)

    with pytest.raises(ZigpassError, match="cannot be captured as a CUDA graph"):
        generate(model, ids, max_new_tokens=8, decode=decode)
    assert torch.rand(8, device="cuda").isfinite().all()  # the GPU can be used as before
