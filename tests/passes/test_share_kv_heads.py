"""Attention of one token over grouped heads, before and after `share_kv_heads`."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import quantized_tiny_llama, random_tokens
from zigpass import passes
from zigpass.passes import Context

BATCH, GROUPS, REPEATS, LENGTH, DEPTH = 2, 2, 3, 9, 8


class Attention(nn.Module):
    """As Hugging Face writes it."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, query, key, value, mask):
        key, value = (
            part[:, :, None].expand(BATCH, GROUPS, REPEATS, LENGTH, DEPTH).reshape(BATCH, -1, LENGTH, DEPTH)
            for part in (key, value)
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.settings)


class WritesBetween(Attention):
    def forward(self, query, key, value, mask):
        repeated = key[:, :, None].expand(BATCH, GROUPS, REPEATS, LENGTH, DEPTH).reshape(BATCH, -1, LENGTH, DEPTH)
        key.zero_()
        return F.scaled_dot_product_attention(query, repeated, repeated, attn_mask=mask)


def inputs(tokens=1, mask=(BATCH, 1, 1, LENGTH)):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, GROUPS * REPEATS, tokens, DEPTH, generator=generator)
    key, value = (torch.randn(BATCH, GROUPS, LENGTH, DEPTH, generator=generator) for _ in range(2))
    return query, key, value, None if mask is None else torch.rand(mask, generator=generator) > 0.3


def capture(module, args):
    """The Dynamo graph of a call."""
    graphs = []

    def backend(gm, example_inputs):
        graphs.append(passes.clone_graph_module(gm))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(module, backend=backend, fullgraph=True, dynamic=False)(*args)
    return graphs[0]


def check(module, args, count):
    gm = capture(module, tuple(None if arg is None else arg.clone() for arg in args))
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    given = dict(zip(("query", "key", "value", "mask"), args, strict=True))
    own = [next(value for name, value in given.items() if name in placeholder.lower()) for placeholder in names]
    expected = gm(*(value.clone() for value in own))[0]
    context = passes.run(gm, Context())
    assert context.counts["share_kv_heads"] == count
    torch.testing.assert_close(gm(*(value.clone() for value in own))[0], expected)
    return gm


@pytest.mark.parametrize(
    "mask", [None, (BATCH, 1, 1, LENGTH), (1, 1, 1, LENGTH), (1, LENGTH), (BATCH, GROUPS * REPEATS, 1, LENGTH)]
)
@pytest.mark.parametrize("settings", [{}, {"scale": 0.5, "is_causal": False, "dropout_p": 0.0}])
def test_repeated_heads_are_shared(mask, settings):
    gm = check(Attention(**settings), inputs(mask=mask), 1)
    assert not [node for node in gm.graph.nodes if passes.canonical(node) == "expand"]


@pytest.mark.parametrize(
    ("module", "args"),
    [
        (Attention(), inputs(tokens=2, mask=None)),
        (WritesBetween(), inputs()),
    ],
    ids=["two tokens", "a write between"],
)
def test_what_would_change_the_result_is_left_alone(module, args):
    check(module, args, 0)


def test_an_exported_program():
    module, args = Attention(scale=0.3), inputs()
    program = torch.export.export(module, args)
    expected = program.module()(*args)
    assert passes.run(program).counts["share_kv_heads"] == 1
    torch.testing.assert_close(program.module()(*args), expected)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_compiled_model_decodes_the_same(wanted):
    from transformers import StaticCache

    torch._dynamo.reset()
    model, ids = quantized_tiny_llama(0.05), random_tokens(9)[None]
    caches = [StaticCache(config=model.config, max_cache_len=32) for _ in range(2)]
    options = {"inner": "eager", "passes": {"share_kv_heads": wanted}}
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options=options)
    with torch.inference_mode():
        for cache in caches:
            model(ids[:, :6], past_key_values=cache, use_cache=True)
        for at in (6, 7, 8):
            token = ids[:, at : at + 1]
            expected = model(token, past_key_values=caches[0], use_cache=True).logits
            torch.testing.assert_close(compiled(token, past_key_values=caches[1], use_cache=True).logits, expected)
