"""Every spelling of an MLP that must be recognized, and that the fused op computes what was written."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.passes.graphs import count_ops, one_row, packed_block, run_passes, run_rewritten
from zigpass.linear import find_linears

SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(SQRT_2_OVER_PI * (x + 0.044715 * torch.pow(x, 3.0))))


def fast_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(x * SQRT_2_OVER_PI * (1.0 + 0.044715 * x * x)))


def erf_gelu(x):
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def relu_times_relu(x):
    r = F.relu(x)
    return r * r


def multiplied_in_place(block, x):
    middle = F.silu(block.gate_proj(x))
    middle *= block.up_proj(x)
    return block.down_proj(middle)


def through_float32(block, x):
    gate = F.silu(block.gate_proj(x).float()).to(x.dtype)
    return block.down_proj(gate * block.up_proj(x))


def grouped_with_up(block, x):
    gate, up = block.gate_proj(x), block.up_proj(x)
    return block.down_proj(gate * (torch.sigmoid(gate) * up))


GATED = {
    "silu": (lambda m, x: m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x)), "silu"),
    "up first": (lambda m, x: m.down_proj(m.up_proj(x) * F.silu(m.gate_proj(x))), "silu"),
    "torch.mul": (lambda m, x: m.down_proj(torch.mul(F.silu(m.gate_proj(x)), m.up_proj(x))), "silu"),
    "method mul": (lambda m, x: m.down_proj(F.silu(m.gate_proj(x)).mul(m.up_proj(x))), "silu"),
    "multiplied in place": (multiplied_in_place, "silu"),
    "silu in place": (lambda m, x: m.down_proj(F.silu(m.gate_proj(x), inplace=True) * m.up_proj(x)), "silu"),
    "nn.SiLU": (lambda m, x: m.down_proj(nn.SiLU()(m.gate_proj(x)) * m.up_proj(x)), "silu"),
    "x * sigmoid(x)": (
        lambda m, x: m.down_proj((g := m.gate_proj(x)) * torch.sigmoid(g) * m.up_proj(x)),
        "silu",
    ),
    "sigmoid grouped with up": (grouped_with_up, "silu"),
    "gelu": (lambda m, x: m.down_proj(F.gelu(m.gate_proj(x)) * m.up_proj(x)), "gelu"),
    "gelu tanh": (lambda m, x: m.down_proj(F.gelu(m.gate_proj(x), approximate="tanh") * m.up_proj(x)), "gelu_tanh"),
    "relu": (lambda m, x: m.down_proj(F.relu(m.gate_proj(x)) * m.up_proj(x)), "relu"),
    "relu method": (lambda m, x: m.down_proj(m.gate_proj(x).relu() * m.up_proj(x)), "relu"),
    "relu squared": (lambda m, x: m.down_proj(F.relu(m.gate_proj(x)).square() * m.up_proj(x)), "relu2"),
    "through float32": (through_float32, "silu"),
    "contiguous": (lambda m, x: m.down_proj((F.silu(m.gate_proj(x)) * m.up_proj(x)).contiguous()), "silu"),
    "eval dropout": (
        lambda m, x: m.down_proj(F.dropout(F.silu(m.gate_proj(x)) * m.up_proj(x), 0.1, m.training)),
        "silu",
    ),
    "separate copies of x": (
        lambda m, x: m.down_proj(F.silu(m.gate_proj(x.contiguous())) * m.up_proj(x.contiguous())),
        "silu",
    ),
}
TWO_MATRICES = {
    "silu": (F.silu, "silu"),
    "x * sigmoid(x)": (lambda x: x * x.sigmoid(), "silu"),
    "gelu": (F.gelu, "gelu"),
    "gelu tanh": (nn.GELU(approximate="tanh"), "gelu_tanh"),
    "NewGELU": (new_gelu, "gelu_tanh"),
    "fast GELU": (fast_gelu, "gelu_tanh"),
    "erf written out": (erf_gelu, "gelu"),
    "relu": (torch.relu, "relu"),
    "relu pow": (lambda x: F.relu(x).pow(2), "relu2"),
    "relu square": (lambda x: torch.square(torch.relu(x)), "relu2"),
    "relu times relu": (relu_times_relu, "relu2"),
}


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("bias", [False, True])
def test_gated_mlp_is_one_op_and_gives_the_same(name, bias):
    body, activation = GATED[name]
    block, x = packed_block(body, bias), one_row()
    out, context = run_rewritten(block, x)
    assert [(match.kind, match.activation) for match in context.matches] == [("gated_mlp", activation)]
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TWO_MATRICES)
def test_two_matrix_mlp_is_the_same_op_without_a_gate(name):
    act, activation = TWO_MATRICES[name]
    block, x = packed_block(lambda m, x: m.down_proj(act(m.up_proj(x))), bias=True), one_row()
    out, context = run_rewritten(block, x)
    assert [(match.kind, match.activation) for match in context.matches] == [("mlp", activation)]
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype):
    block, x = packed_block(GATED["silu"][0]), one_row(dtype=dtype)
    out, context = run_rewritten(block, x)
    assert context.kinds == {"gated_mlp": 1}
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), block(x).float(), rtol=3e-2, atol=3e-2)


def test_only_the_matched_nodes_are_gone():
    gm, _ = run_passes(packed_block(GATED["silu"][0]), one_row())
    calls = [str(node.target) for node in gm.graph.nodes if node.op not in ("placeholder", "output")]
    assert calls == ["zigpass.gated_mlp.default"]


def test_match_names_layers_and_shapes():
    block = packed_block(GATED["up first"][0])
    _, context = run_passes(block, one_row())
    (match,) = context.matches
    assert match.modules == ("gate_proj", "up_proj", "down_proj")
    assert match.shapes == ((96, 64), (96, 64), (64, 96))
    assert match.num_bytes == sum(linear.packed.num_bytes for _, linear in find_linears(block))


def test_mlps_that_feed_each_other_are_all_fused():
    def three_times(m, x):
        for _ in range(3):
            x = m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))
        return x

    block, x = packed_block(three_times), one_row()
    out, context = run_rewritten(block, x)
    assert context.kinds == {"gated_mlp": 3}
    torch.testing.assert_close(out, block(x), rtol=1e-4, atol=1e-4)


def test_more_rows_are_left_as_they_are():
    gm, context = run_passes(packed_block(GATED["silu"][0]), torch.randn(1, 7, 64))
    assert (count_ops(gm, "gated_mlp"), count_ops(gm, "linear")) == (0, 3)
    assert [linear.rows for linear in context.dense] == [7, 7, 7]
    assert not context.matches
    assert not context.near_misses


def test_any_rows_fuses_a_prefill_graph_too():
    gm, context = run_passes(packed_block(GATED["silu"][0]), torch.randn(1, 7, 64), any_rows=True)
    assert count_ops(gm, "gated_mlp") == 1
    assert not context.dense


def test_rows_of_a_flat_input_count():
    _, context = run_passes(packed_block(GATED["silu"][0]), torch.randn(1, 64))
    assert context.kinds == {"gated_mlp": 1}
