"""Everything that resembles an MLP and is not one: left as it is, still right, and the reason says why."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.passes.graphs import Block, one_row, packed_block, reasons, run_passes, run_rewritten
from zigpass.sites import Site


def swiglu(m, x):
    return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))


def gate_escapes(m, x):
    gate = m.gate_proj(x)
    return m.down_proj(F.silu(gate) * m.up_proj(x)), gate.sum()


def write_between(m, x):
    x = x + 0.0
    gate = F.silu(m.gate_proj(x))
    x.mul_(2.0)
    return m.down_proj(gate * m.up_proj(x))


def write_through_a_view(m, x):
    x = x + 0.0
    gate = F.silu(m.gate_proj(x))
    x.view(-1)[:3].mul_(2.0)
    return m.down_proj(gate * m.up_proj(x))


def write_with_setitem(m, x):
    x = x + 0.0
    gate = F.silu(m.gate_proj(x))
    x[..., 0] = 1.0
    return m.down_proj(gate * m.up_proj(x))


def write_into_a_weight(m, x):
    gate = F.silu(m.gate_proj(x))
    m.up_proj.scale.mul_(1.0)
    return m.down_proj(gate * m.up_proj(x))


def gelu_of_an_overwritten_value(m, x):
    """Node for node the tanh form of GELU, but the value it reads again has been halved by then."""
    up = m.up_proj(x)
    half = up.mul_(0.5)
    inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up.pow(3))
    return m.down_proj(half * (1.0 + torch.tanh(inner)))


def halves(m, x):
    gate, up = m.both(x).chunk(2, dim=-1)
    return m.down_proj(F.silu(gate) * up)


def sliced_halves(m, x):
    both = m.both(x)
    return m.down_proj(both[..., 96:] * F.silu(both[..., :96]))


BOTH = {"both": (64, 192)}
CASES = {
    "a value inside escapes": (gate_escapes, {}, "is also used outside it, by "),
    "different inputs": (
        lambda m, x: m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x + 1)),
        {},
        "gate and up read different inputs (",
    ),
    "inputs of different rounding": (
        lambda m, x: m.down_proj(F.silu(m.gate_proj(x.bfloat16().float())) * m.up_proj(x)),
        {},
        "gate and up read different inputs (",
    ),
    "different row counts": (
        lambda m, x: m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x)),
        {"gate_proj": (64, 1)},
        "gate and up have different row counts (1, 96)",
    ),
    "write into x": (write_between, {}, "mul_ (x.mul_()) writes in place into an input of the MLP between its linears"),
    "write into a view of x": (write_through_a_view, {}, "writes in place into an input of the MLP"),
    "setitem on x": (write_with_setitem, {}, "setitem (setitem) writes in place into an input of the MLP"),
    "write into a weight": (write_into_a_weight, {}, "writes in place into an input of the MLP"),
    "overwrites what it reads again": (
        gelu_of_an_overwritten_value,
        {},
        "half (x.mul_()) overwrites a value in place that the MLP reads again",
    ),
    "unknown activation": (
        lambda m, x: m.down_proj(F.leaky_relu(m.gate_proj(x)) * m.up_proj(x)),
        {},
        "leaky_relu of gate_proj is not an activation gated_mlp knows (silu, gelu, gelu_tanh, relu, relu2)",
    ),
    "unknown activation of two matrices": (
        lambda m, x: m.down_proj(F.mish(m.up_proj(x))),
        {},
        "mish of up_proj is not an activation",
    ),
    "quick GELU": (
        lambda m, x: m.down_proj((g := m.gate_proj(x)) * torch.sigmoid(1.702 * g) * m.up_proj(x)),
        {},
        "which is not an activation of a linear",
    ),
    "no activation": (
        lambda m, x: m.down_proj(m.gate_proj(x) * m.up_proj(x)),
        {},
        "gate_proj, up_proj are multiplied without an activation",
    ),
    "one linear is gate and up": (
        lambda m, x: m.down_proj(F.silu(g := m.gate_proj(x)) * g),
        {},
        "gate and up are the same linear (gate_proj)",
    ),
    "scaled": (
        lambda m, x: m.down_proj(0.3 * F.silu(m.gate_proj(x)) * m.up_proj(x)),
        {},
        "the middle is scaled by 0.3, which gated_mlp cannot express",
    ),
    "clamped": (
        lambda m, x: m.down_proj((F.silu(m.gate_proj(x)) * m.up_proj(x)).clamp(-1, 1)),
        {},
        "the middle (x.clamp()) is not a product of an activation and a linear",
    ),
    "halves of one linear": (halves, BOTH, "gate and up are parts of one linear (both)"),
    "slices of one linear": (sliced_halves, BOTH, "gate and up are parts of one linear (both)"),
    "changes dtype": (
        lambda m, x: m.down_proj((F.silu(m.gate_proj(x)) * m.up_proj(x)).bfloat16()),
        {},
        "the block takes torch.float32 and returns torch.bfloat16",
    ),
    "changes shape": (
        lambda m, x: m.down_proj((F.silu(m.gate_proj(x)) * m.up_proj(x)).view(1, -1)),
        {},
        "the block takes shape (1, 1, 64) and returns (1, 64)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal_says_why_and_leaves_the_result_right(name):
    body, sizes, reason = CASES[name]
    block, x = packed_block(body, **sizes), one_row()
    out, context = run_rewritten(block, x)
    with torch.no_grad():
        expected = block(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert not {"gated_mlp", "mlp"} & set(context.kinds)
    assert any(reason in found for found in reasons(context)), reasons(context)


def test_different_thresholds():
    block = packed_block(swiglu)
    block.up_proj.site = Site("another", "mlp_in", 64)
    _, context = run_passes(block, one_row())
    assert context.kinds == {"linear": 3}
    assert "gate and up have different thresholds (" in reasons(context)[0]
    assert reasons(context)[0].endswith("): give both linears the same Site")


def test_training_dropout():
    block = packed_block(lambda m, x: m.down_proj(F.dropout(F.silu(m.gate_proj(x)) * m.up_proj(x), 0.1, m.training)))
    _, context = run_passes(block.train(), one_row())
    assert not context.kinds["gated_mlp"]
    assert reasons(context) == ["dropout is a dropout in training mode: call model.eval() before compiling"]


def test_float_mlp_is_told_to_quantize_even_in_prefill():
    _, context = run_passes(Block(swiglu).eval(), torch.randn(1, 7, 64))
    assert not context.matches
    assert reasons(context) == [
        "gate_proj, up_proj, down_proj are not quantized: call zigpass.quantize_(model, ...) first"
    ]


def test_partly_float_mlp_names_the_layer():
    block = packed_block(swiglu)
    block.up_proj = torch.nn.Linear(64, 96, bias=False)
    _, context = run_passes(block, one_row())
    assert reasons(context) == ["up_proj is not quantized: call zigpass.quantize_(model, ...) first"]
    assert context.kinds == {"linear": 2}


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.down_proj(m.up_proj(x)),
        lambda m, x: m.down_proj(F.layer_norm(m.up_proj(x), (96,))),
        lambda m, x: m.down_proj(m.up_proj(x) + 1),
        lambda m, x: m.up_proj(torch.ones(64) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)))),
    ],
    ids=["linear of linear", "norm between", "sum between", "after an RMSNorm"],
)
def test_nothing_is_said_about_what_is_no_mlp_at_all(body):
    _, context = run_passes(packed_block(body), one_row())
    assert not context.near_misses
    assert set(context.kinds) == {"linear"}
