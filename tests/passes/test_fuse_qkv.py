"""Linears that share an input and a threshold become one op."""

import pytest
import torch
from torch import nn

from tests.passes.graphs import count_ops, one_row, reasons, run_passes, run_rewritten
from zigpass.config import ZigzagConfig
from zigpass.quantize import quantize_
from zigpass.sites import Site, find_sites


class Attention(nn.Module):
    """q, k, v and o with a stand-in for attention between."""

    def __init__(self, project, bias=False):
        super().__init__()
        self.project = project
        for name, n in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32)):
            setattr(self, name, nn.Linear(64, n, bias))
        self.o_proj = nn.Linear(128, 64, bias)

    def forward(self, x):
        return self.o_proj(torch.cat(self.project(self, x), -1).tanh())


def attention(project, bias=False):
    torch.manual_seed(0)
    module = quantize_(Attention(project, bias).eval(), ZigzagConfig(group_size=32), progress=False)
    for site in find_sites(module).values():
        site.set_threshold(0.3)
    return module


def plain(m, x):
    return m.q_proj(x), m.k_proj(x), m.v_proj(x)


def write_between(m, x):
    x = x + 0.0
    q = m.q_proj(x)
    x.add_(1.0)
    return q, m.k_proj(x), m.v_proj(x)


def changes_q_before_k(m, x):
    q = m.q_proj(x)
    q.mul_(2.0)
    return q, m.k_proj(x), m.v_proj(x)


def q_into_k(m, x):
    q = m.q_proj(x)
    return q, m.k_proj(q), m.v_proj(x)


@pytest.mark.parametrize("bias", [False, True])
def test_one_op_that_gives_the_same(bias):
    module, x = attention(plain, bias), one_row()
    out, context = run_rewritten(module, x)
    assert context.kinds == {"qkv": 1, "linear": 1}
    torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-5)


def test_graph_and_names():
    gm, context = run_passes(attention(plain), one_row())
    assert (count_ops(gm, "qkv"), count_ops(gm, "linear")) == (1, 1)
    qkv, o = context.matches
    assert qkv.modules == ("q_proj", "k_proj", "v_proj")
    assert qkv.shapes == ((64, 64), (32, 64), (32, 64))
    assert o.modules == ("o_proj",)


def test_two_are_enough():
    module = attention(lambda m, x: (m.q_proj(x), m.k_proj(x), torch.ones(1, 1, 32)))
    _, context = run_passes(module, one_row())
    assert context.matches[0].modules == ("q_proj", "k_proj")


def test_more_rows_are_left_as_they_are():
    gm, context = run_passes(attention(plain), torch.randn(1, 3, 64))
    assert count_ops(gm, "linear") == 4
    assert len(context.dense) == 4


def test_write_between_is_refused():
    module, x = attention(write_between), one_row()
    out, context = run_rewritten(module, x)
    assert not context.kinds["qkv"]
    assert reasons(context) == ["add_ (x.add_()) writes in place into an input between the linears"]
    torch.testing.assert_close(out, module(x))


def test_result_changed_in_place_is_fine():
    module, x = attention(changes_q_before_k), one_row()
    out, context = run_rewritten(module, x)
    assert context.kinds["qkv"] == 1
    torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-5)


def test_member_that_reads_another_member_is_no_member():
    module, x = attention(q_into_k), one_row()
    out, context = run_rewritten(module, x)
    assert context.matches[0].modules == ("q_proj", "v_proj")
    torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-5)
    assert "they share a threshold but read different inputs (" in reasons(context)[0]


def test_different_thresholds_are_named():
    module = attention(plain)
    module.v_proj.site = Site("own", "attn_in", 64)
    _, context = run_passes(module, one_row())
    assert context.matches[0].modules == ("q_proj", "k_proj")
    assert "they read one activation but have different thresholds (" in reasons(context)[0]
    assert "give the linears the same Site" in reasons(context)[0]
