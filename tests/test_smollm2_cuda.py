"""The real model on a GPU: what the CPU path computes, through CUDA kernels and a captured decode step."""

import pytest
import torch

import zigpass
from zigpass.decode_step import DecodeStep
from zigpass.generate import generate
from zigpass.sites import dense
from zigpass.tools.demo import encode_prompt, topics

pytestmark = [pytest.mark.cuda, pytest.mark.model, pytest.mark.slow]

NEW_TOKENS = 64
PREFIX, SCORED = 128, 128


@pytest.fixture(scope="module")
def tokenizer(smollm2_path):
    return zigpass.load_gguf_tokenizer(smollm2_path)


@pytest.fixture(scope="module")
def models(smollm2_path, tokenizer):
    """One model on the CPU and one on the GPU with the same thresholds."""
    on_cpu = zigpass.load_gguf(smollm2_path, progress=False)
    thresholds = zigpass.calibrate(
        on_cpu, topics()[0], 0.5, allocation="uniform", tokenizer=tokenizer, window=256, num_windows=4, progress=False
    )
    on_gpu = zigpass.load_gguf(smollm2_path, progress=False)
    thresholds.apply(on_gpu)
    return on_cpu, on_gpu.cuda()


def test_greedy_tokens_at_sparsity_0_are_those_of_the_cpu(models, tokenizer):
    on_cpu, on_gpu = models
    compiled = torch.compile(on_gpu, backend="zigpass", options={"require_match": True}, fullgraph=True)
    for prompt in ("What is the capital of France?", "Explain in a few sentences why the sky is blue."):
        ids = encode_prompt(tokenizer, prompt)
        with dense(on_cpu), dense(on_gpu):
            expected = generate(on_cpu, ids, max_new_tokens=NEW_TOKENS)
            result = generate(on_gpu, ids.cuda(), max_new_tokens=NEW_TOKENS, decode=compiled, cache_length=160)
        assert result.tokens.tolist() == expected.tokens.tolist()
        print(f"{prompt} {result.summary}")


def test_perplexity_at_half_sparsity_is_that_of_the_cpu(models, tokenizer):
    """Decoded token by token, so that the sparse kernels run."""
    on_cpu, on_gpu = models
    compiled = torch.compile(on_gpu, backend="zigpass", options={"require_match": True}, fullgraph=True)
    ids = tokenizer(topics()[1], return_tensors="pt").input_ids
    windows = [ids[:, start : start + PREFIX + SCORED] for start in (0, 20_000)]
    cpu = torch.cat([decode_losses(on_cpu, on_cpu, window, cuda_graph=False) for window in windows])
    gpu = torch.cat([decode_losses(on_gpu, compiled, window.cuda(), cuda_graph=True) for window in windows])
    difference = (cpu - gpu).abs()
    print(f"perplexity {cpu.mean().exp():.3f} (CPU), {gpu.mean().exp():.3f} (GPU)")
    # Thresholds decide anew wherever sums differ in the last bits, so single tokens may differ.
    assert difference.median() < 0.02
    assert gpu.mean().exp() == pytest.approx(float(cpu.mean().exp()), rel=0.03)


def decode_losses(model, decode, ids, cuda_graph):
    """Loss of each of the `SCORED` tokens after a dense prefill of `PREFIX`, on the CPU."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=PREFIX + SCORED)
    step = DecodeStep(decode, cache, cuda_graph)
    with torch.inference_mode():
        logits = [model(ids[:, :PREFIX], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0]]
        logits += [step(ids[:, at : at + 1])[0].clone() for at in range(PREFIX, PREFIX + SCORED - 1)]
    return torch.nn.functional.cross_entropy(torch.cat(logits).float(), ids[0, PREFIX:], reduction="none").cpu()
