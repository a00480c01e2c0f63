"""Weights that a graph dequantizes itself: recognized, packed where somebody packs them, and named otherwise."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("torchao", reason="torchao is not installed")

import torchao.quantization.pt2e  # noqa: F401  # registers the operators

from tests.models import SwiGlu
from tests.passes.graphs import capture, count_ops, one_row, packed_block, reasons
from zigpass import passes
from zigpass.linear import find_linears
from zigpass.passes import Context, PackedLeaf
from zigpass.tools.exported import quantize_graph

NOT_PACKED = "torch.compile packs it when it runs, keeps both copies and has no threshold for it"


def exported(model):
    return torch.export.export(model.eval(), (one_row(),))


def qdq_graph(kind="affine"):
    return quantize_graph(exported(SwiGlu(bias=True)).module(), one_row(), kind)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("affine", "torchao.dequantize_affine"),
        ("channel", "quantized_decomposed.dequantize_per_channel"),
        ("tensor", "quantized_decomposed.dequantize_per_tensor"),
    ],
)
def test_graphs_of_pt2e_are_recognized_and_left_alone_without_a_packer(kind, name):
    graph = qdq_graph(kind)
    code = graph.code
    context = passes.run(graph)
    assert [linear.leaf.representation for linear in context.float_linears] == [name] * 3
    assert all(f"is quantized ({name}), but not packed: {NOT_PACKED}" in reason for reason in reasons(context))
    assert len(reasons(context)) == 3  # and nothing about an MLP that is not quantized
    assert graph.code == code


def test_exported_programs_too():
    program = torch.export.export(qdq_graph(), (one_row(),))
    context = passes.run(program)
    assert len(reasons(context)) == 3
    assert not context.matches


def test_a_float_weight_is_no_leaf():
    context = passes.run(capture(SwiGlu(), one_row()))
    assert [linear.leaf for linear in context.float_linears] == [None] * 3
    assert "not quantized: call zigpass.quantize_" in reasons(context)[0]


def of_a_packed_block(gm, packed):
    """Gives the graph the packed tensors of an equal block, as attributes."""

    def pack(graph, linear):
        for name, module in find_linears(packed):
            if name == linear.module:
                nodes = []
                for part, tensor in zip(("codes", "scale", "zero"), module.weight_tensors, strict=True):
                    gm.register_buffer(f"{name}_{part}", tensor)
                    with graph.graph.inserting_before(linear.node):
                        nodes.append(graph.graph.get_attr(f"{name}_{part}"))
                    nodes[-1].meta["val"] = tensor
                return PackedLeaf(tuple(nodes), module.layout_spec)
        return "there is nothing for it"

    return pack


def test_a_packer_turns_leaves_into_linears_that_fuse():
    def swiglu(m, x):
        return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))

    graph, packed, x = qdq_graph(), packed_block(swiglu, bias=True, threshold=0.0), one_row()
    context = passes.run(graph, Context(packer=of_a_packed_block(graph, packed)))
    assert context.counts["pack_weight_leaves"] == 3
    assert context.kinds == {"gated_mlp": 1}
    assert count_ops(graph, "gated_mlp") == 1
    assert not [node for node in graph.graph.nodes if "dequantize" in str(node.target)]
    for name, module in find_linears(packed):  # the biases are those of the graph
        module.bias = getattr(graph, name).bias.detach() if hasattr(graph, name) else module.bias
    with torch.no_grad():
        torch.testing.assert_close(graph(x), packed(x), rtol=1e-5, atol=1e-5)


def test_what_a_packer_refuses_is_named_and_stays():
    graph, x = qdq_graph(), one_row()
    expected = graph(x)
    context = passes.run(graph, Context(packer=lambda gm, linear: "it is too small" if "up" in linear.module else "no"))
    assert "up_proj is quantized (torchao.dequantize_affine), but not packed: it is too small" in reasons(context)
    assert torch.equal(graph(x), expected)


def test_the_pass_can_be_left_out():
    context = passes.run(qdq_graph(), Context(skip=frozenset({"pack_weight_leaves"})))
    assert "pack_weight_leaves" not in context.counts


class FakeQuantized(nn.Module):
    """Quantization-aware training: the codes are computed from a float weight at every call."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 64))
        self.register_buffer("scale", torch.ones(16, 2) * 0.1)
        self.register_buffer("zero", torch.zeros(16, 2, dtype=torch.int32))

    def forward(self, x):
        shared = ([1, 32], self.scale, self.zero, torch.int8, -8, 7)
        codes = torch.ops.torchao.quantize_affine.default(self.weight, *shared)
        return F.linear(x, torch.ops.torchao.dequantize_affine.default(codes, *shared))


def test_codes_that_are_computed_are_no_stored_weight():
    never = Context(packer=lambda gm, linear: pytest.fail("not to be asked"))
    context = passes.run(exported(FakeQuantized()).module(), never)
    (reason,) = reasons(context)
    assert "its codes or scales are computed in the graph (quantize_affine), not stored" in reason


class Reshaped(nn.Module):
    """Dequantized in one shape and used in another: rows and groups would be mixed up."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randint(-8, 8, (8, 128), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(8, 4))
        self.register_buffer("zero", torch.zeros(8, 4, dtype=torch.int32))

    def forward(self, x):
        op = torch.ops.torchao.dequantize_affine.default
        return F.linear(x, op(self.codes, [1, 32], self.scale, self.zero, torch.int8, -8, 7).view(16, 64))


def test_a_weight_of_another_shape_than_its_codes_is_no_leaf():
    context = passes.run(exported(Reshaped()).module())
    (linear,) = context.float_linears
    assert linear.leaf is None
