"""Gate and up behind a concatenation: every way to cut it again, and the ways that are something else."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from tests.passes.graphs import MIDDLE, count_ops, one_row, packed_block, run_passes, run_rewritten
from zigpass import passes


def both(m, x):
    return torch.cat([m.gate_proj(x), m.up_proj(x)], -1)


def body(cut):
    def forward(m, x):
        gate, up = cut(both(m, x))
        return m.down_proj(F.silu(gate) * up)

    return forward


CUTS = {
    "chunk": lambda v: v.chunk(2, dim=-1),
    "torch.chunk": lambda v: torch.chunk(v, 2, 2),
    "split by size": lambda v: v.split(MIDDLE, dim=-1),
    "split by sizes": lambda v: torch.split(v, [MIDDLE, MIDDLE], dim=-1),
    "narrow": lambda v: (v.narrow(-1, 0, MIDDLE), torch.narrow(v, 2, MIDDLE, MIDDLE)),
    "slices": lambda v: (v[..., :MIDDLE], v[..., MIDDLE:]),
    "slices of everything": lambda v: (v[:, :, :MIDDLE], v[:, :, -MIDDLE:]),
    "a slice of a slice": lambda v: (v[..., :MIDDLE], v[..., 1:][..., MIDDLE - 1 :]),
}
OTHERS = {
    "shifted": lambda v: (v[..., 1 : MIDDLE + 1], v[..., MIDDLE:]),
    "every second one": lambda v: (v[..., ::2], v[..., 1::2]),
    "both halves of gate": lambda v: (v[..., :MIDDLE], v[..., :MIDDLE]),
    "quarters": lambda v: v.chunk(4, dim=-1)[:2],
}


@pytest.mark.parametrize("name", CUTS)
def test_cut_at_the_seam_is_a_gated_mlp(name):
    block, x = packed_block(body(CUTS[name]), bias=True), one_row()
    out, context = run_rewritten(block, x)
    assert context.kinds == {"gated_mlp": 1}
    assert context.matches[0].modules == ("gate_proj", "up_proj", "down_proj")
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


def test_nothing_of_the_concatenation_is_left():
    gm, _ = run_passes(packed_block(body(CUTS["chunk"])), one_row())
    calls = [str(node.target) for node in gm.graph.nodes if node.op not in ("placeholder", "output")]
    assert calls == ["zigpass.gated_mlp.default"]


@pytest.mark.parametrize("name", OTHERS)
def test_cut_anywhere_else_is_not(name):
    down = {"down_proj": (MIDDLE // 2 if name == "quarters" else MIDDLE, 64)}
    block, x = packed_block(body(OTHERS[name]), **down), one_row()
    out, context = run_rewritten(block, x)
    assert context.kinds["gated_mlp"] == 0
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


def test_gate_and_up_exchanged_stay_exchanged():
    """up comes first here: the activation is applied to the second half."""
    block, x = (
        packed_block(lambda m, x: m.down_proj(F.silu((v := both(m, x))[..., MIDDLE:]) * v[..., :MIDDLE])),
        one_row(),
    )
    out, context = run_rewritten(block, x)
    assert context.matches[0].modules == ("up_proj", "gate_proj", "down_proj")
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


def test_parts_of_rows_are_not_parts_of_features():
    block = packed_block(lambda m, x: m.down_proj(F.silu(m.gate_proj(x)) * torch.cat([m.up_proj(x)] * 2, 1)[:, :1]))
    x = one_row()
    out, context = run_rewritten(block, x)
    assert context.kinds["gated_mlp"] == 0
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


def test_concatenation_that_is_used_otherwise_stays():
    def forward(m, x):
        value = both(m, x)
        return m.down_proj(F.silu(value[..., :MIDDLE]) * value[..., MIDDLE:]), value

    block, x = packed_block(forward), one_row()
    out, context = run_rewritten(block, x)
    assert context.kinds == {"qkv": 1, "linear": 1}
    assert "is also used outside it, by " in context.near_misses[0].reason
    for mine, expected in zip(out, block(x), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_aten_graphs_and_any_number_of_rows():
    block = packed_block(body(CUTS["chunk"]))
    assert passes.run(make_fx(block)(one_row())).kinds == {"gated_mlp": 1}
    rows = torch.export.Dim("rows", min=1, max=64)
    gm = torch.export.export(block, (torch.randn(1, 3, 64),), dynamic_shapes={"x": {1: rows}}).module()
    assert passes.run(gm, passes.Context(any_rows=True)).kinds == {"gated_mlp": 1}
    assert count_ops(gm, "gated_mlp") == 1
    x = torch.randn(1, 5, 64)
    torch.testing.assert_close(gm(x), block(x), rtol=1e-5, atol=1e-5)
