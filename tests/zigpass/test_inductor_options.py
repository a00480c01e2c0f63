import re

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.decode_step import DecodeStep
from zigpass.inductor_options import DECODE_OPTIONS, decode_options
from zigpass.passes import Context, Match

MATCH = Match("linear", ("o_proj",), ((64, 64),), 2048, ("codes",))
ON_GPU, ON_CPU = DECODE_OPTIONS["cuda"], DECODE_OPTIONS["cpu"]
PLAIN = dict.fromkeys(ON_GPU, False)


def fake_input(device):
    with FakeTensorMode():
        return torch.empty(1, 64, device=device)


def test_a_graph_of_one_token_gets_those_of_its_device():
    contexts = [Context(), Context(matches=[MATCH])]
    assert decode_options(contexts, [3, fake_input("cuda")]) == ON_GPU
    assert decode_options(contexts, [3, fake_input("cpu")]) == ON_CPU
    assert decode_options(contexts, [fake_input("cpu"), fake_input("cuda")]) == ON_GPU


def test_other_graphs_do_not():
    assert decode_options([Context()], [fake_input("cuda")]) == {}
    assert decode_options([Context()], [fake_input("cpu")]) == {}


def test_keys_that_inductor_does_not_have_are_left_out(monkeypatch):
    monkeypatch.setitem(ON_GPU, "triton.no_such_key", True)
    assert "triton.no_such_key" not in decode_options([Context(matches=[MATCH])], [fake_input("cuda")])


def test_what_the_user_says_comes_first(monkeypatch):
    """Through the backend, as far as what Inductor is told."""
    from torch._inductor import compile_fx

    patches = []

    def compiled(gm, inputs, config_patches=None):
        patches.append(config_patches)
        return gm.forward

    monkeypatch.setattr(compile_fx, "compile_fx", compiled)
    model = quantized_tiny_llama()
    for options in ({}, {"size_asserts": True}):
        torch._dynamo.reset()
        with torch.inference_mode():
            torch.compile(model, backend="zigpass", options=options)(random_tokens(1)[None])
    assert patches == [ON_CPU, {"size_asserts": True}]


@pytest.fixture
def decoded():
    """Logits of some steps of a model compiled with these options, and the code that Inductor made of it."""

    def run(options):
        from torch._inductor.utils import run_and_get_code
        from transformers import StaticCache

        torch._dynamo.reset()
        model = quantized_tiny_llama(0.05).to("cuda", torch.bfloat16)
        ids = random_tokens(7)[None].cuda()
        following = random_tokens(12, seed=1).cuda()
        cache = StaticCache(config=model.config, max_cache_len=32)

        def steps():
            step = DecodeStep(compiled, cache, cuda_graph=True)
            return torch.cat([step(token.view(1, 1)).clone() for token in following])

        compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"require_match": True, **options})
        with torch.inference_mode():
            model(ids, past_key_values=cache, use_cache=True)
            return run_and_get_code(steps)

    return run


@pytest.mark.cuda
def test_the_options_change_logits_by_rounding_only(decoded):
    (plain, _), (tuned, _) = decoded(PLAIN), decoded({})
    assert (plain - tuned).norm() < 0.02 * plain.norm()
    assert not plain.isnan().any()


@pytest.mark.cuda
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="launches early from sm_90 on"
)
def test_every_kernel_that_starts_early_waits(decoded):
    """Or a kernel behind it could start before the one in front of it has ended."""
    _, sources = decoded({})
    kernels = [part for source in sources for part in re.split(r"(?=async_compile\.triton)", source)[1:]]
    early = [kernel for kernel in kernels if "'launch_pdl': True" in kernel]
    assert early
    assert all("gdc_wait" in kernel.partition("''', device_str")[0] for kernel in early)
