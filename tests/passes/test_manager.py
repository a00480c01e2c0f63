"""The list of passes, switching passes off, graphs that were traced by hand, subgraphs."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from tests.models import SwiGlu, quantized_tiny_llama
from tests.passes.graphs import capture, count_ops, one_row, packed_block
from zigpass import passes
from zigpass.config import ZigzagConfig
from zigpass.passes import Context, PassError
from zigpass.quantize import quantize_
from zigpass.runtime import ops  # noqa: F401  # defines the operators


def swiglu(m, x):
    return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))


def test_passes_in_the_order_they_run():
    assert [item.name for item in passes.PASSES] == [
        "collect_linears",
        "pack_weight_leaves",
        "fuse_gated_mlp",
        "fuse_qkv",
        "count_linears",
        "share_kv_heads",
        "verify_graph",
    ]
    assert passes.OPTIONAL_PASSES == ("pack_weight_leaves", "fuse_gated_mlp", "fuse_qkv", "share_kv_heads")


def test_every_pass_is_a_file_of_its_name_with_a_docstring():
    for item in passes.PASSES:
        assert item.run.__module__ == f"zigpass.passes.{item.name}"
        assert item.run.__doc__


def test_passes_import_nothing_of_the_rest():
    """They know op names only: neither kernels nor the user's side of the package."""
    folder = Path(passes.__file__).parent
    imports = [line for file in folder.glob("*.py") for line in file.read_text().splitlines() if "import" in line]
    assert not [line for line in imports if re.match(r"\s*(from|import) (zigpass|\.\.)", line)]


def test_counts_per_pass():
    context = passes.run(capture(packed_block(swiglu), one_row()))
    assert context.counts == {
        "collect_linears": 3,
        "pack_weight_leaves": 0,
        "fuse_gated_mlp": 1,
        "fuse_qkv": 0,
        "count_linears": 0,
        "share_kv_heads": 0,
        "verify_graph": 1,
    }


def test_linear_without_a_threshold_is_counted_apart():
    block = packed_block(lambda m, x: m.down_proj(m.up_proj(x)))
    block.down_proj.site = None
    context = passes.run(capture(block, one_row()))
    assert context.kinds == {"linear": 1, "dense_linear": 1}


def test_pass_that_is_switched_off_leaves_its_work_to_the_others():
    gm = capture(packed_block(swiglu), one_row())
    context = passes.run(gm, Context(skip=frozenset({"fuse_gated_mlp"})))
    assert context.kinds == {"qkv": 1, "linear": 1}  # gate and up share an input
    context = passes.run(capture(packed_block(swiglu), one_row()), Context(skip=frozenset(passes.OPTIONAL_PASSES)))
    assert context.kinds == {"linear": 3}


def test_second_run_finds_nothing_left():
    gm = capture(packed_block(swiglu), one_row())
    passes.run(gm)
    code = gm.code
    assert not passes.run(gm).matches
    assert gm.code == code


def test_hand_traced_graph_needs_example_inputs():
    block = packed_block(swiglu)
    with pytest.raises(PassError, match="has no shape: pass example_inputs"):
        passes.run(torch.fx.symbolic_trace(block))
    gm = torch.fx.symbolic_trace(block)
    context = passes.run(gm, example_inputs=[one_row()])
    assert context.kinds == {"gated_mlp": 1}
    torch.testing.assert_close(gm(one_row()), block(one_row()), rtol=1e-5, atol=1e-5)


def test_graph_traced_by_make_fx():
    block, x = packed_block(swiglu), one_row()
    gm = make_fx(block)(x)
    assert passes.run(gm).kinds == {"gated_mlp": 1}
    torch.testing.assert_close(gm(x), block(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("act", [F.silu, F.gelu, lambda x: F.relu(x).square(), lambda x: F.gelu(x, approximate="tanh")])
def test_exported_program(act, decompose):
    block = packed_block(lambda m, x: m.down_proj(act(m.gate_proj(x)) * m.up_proj(x)), bias=True)
    x = one_row()
    program = torch.export.export(block, (x,))
    gm = (program.run_decompositions() if decompose else program).module()
    context = passes.run(gm)
    assert context.kinds == {"gated_mlp": 1}
    assert context.matches[0].modules == ("gate_proj", "up_proj", "down_proj")
    torch.testing.assert_close(gm(x), block(x), rtol=1e-5, atol=1e-5)


def test_exported_llama():
    model = quantized_tiny_llama(0.3)
    tokens = torch.tensor([[5]])
    with torch.no_grad():
        gm = torch.export.export(model, (tokens,), {"use_cache": False}).module()
        assert passes.run(gm).kinds == {"gated_mlp": 2, "qkv": 2, "linear": 2}
        out = gm(tokens, use_cache=False).logits
        torch.testing.assert_close(out, model(tokens, use_cache=False).logits, rtol=1e-5, atol=1e-5)


def test_exported_graph_with_dynamic_rows_is_fused_when_asked():
    block = packed_block(swiglu)
    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(block, (torch.randn(3, 64),), dynamic_shapes={"x": {0: rows}})
    gm = program.module()
    assert len(passes.run(gm).dense) == 3
    assert passes.run(gm, Context(any_rows=True)).kinds == {"gated_mlp": 1}
    for count in (1, 5):
        x = torch.randn(count, 64)
        torch.testing.assert_close(gm(x), block(x), rtol=1e-5, atol=1e-5)


def test_clone_is_independent_and_complete():
    gm = capture(quantize_(SwiGlu(), ZigzagConfig(group_size=32), progress=False), one_row())
    before = gm.code
    clone = passes.clone_graph_module(gm)
    assert clone.code == before
    for old, new in zip(gm.graph.nodes, clone.graph.nodes, strict=True):
        assert new.meta.keys() == old.meta.keys()
        assert getattr(new, "_dynamo_source", None) is getattr(old, "_dynamo_source", None)
    passes.run(clone)
    assert count_ops(clone, "gated_mlp") == 1
    assert gm.code == before
