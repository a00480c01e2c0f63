"""What a user registers, exactly as the README of the passes shows it."""

import re
from pathlib import Path

import pytest
import torch

from tests.passes.graphs import capture, count_ops, one_row, packed_block, reasons, run_passes, run_rewritten
from zigpass import passes
from zigpass.explain import explain
from zigpass.passes import Context, PassError

README = (Path(passes.__file__).parent / "README.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def _my_library():
    library = torch.library.Library("mylib", "DEF")
    library.define("linear(Tensor x, Tensor[] weight, Tensor? bias, Tensor? threshold, str layout) -> Tensor")
    library.impl("linear", torch.ops.zigpass.linear.default, "CompositeExplicitAutograd")
    yield
    library._destroy()


def registered(name):
    """Run the block of the README that is marked with a name; the function it registers."""
    (source,) = re.findall(rf"```python {name}\n(.*?)```", README, re.DOTALL)
    namespace = {}
    exec(source, namespace)
    return next(value for key, value in namespace.items() if key in ("relu_as_clamp", "use_my_kernel"))


def clamped(m, x):
    return m.down_proj(m.gate_proj(x).clamp(min=0) * m.up_proj(x))


def test_activation_of_the_readme():
    block, x = packed_block(clamped), one_row()
    _, context = run_passes(block, x)
    assert context.kinds["gated_mlp"] == 0
    assert "x.clamp() of gate_proj is not an activation" in reasons(context)[0]
    function = registered("activation")
    try:
        out, context = run_rewritten(block, x)
        assert [(match.kind, match.activation) for match in context.matches] == [("gated_mlp", "relu")]
        torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)
        other = packed_block(lambda m, x: m.down_proj(m.gate_proj(x).clamp(min=1) * m.up_proj(x)))
        assert run_passes(other, x)[1].kinds["gated_mlp"] == 0
    finally:
        passes.unregister(function)
    assert run_passes(block, x)[1].kinds["gated_mlp"] == 0


def test_pass_of_the_readme():
    block, x = packed_block(lambda m, x: m.down_proj(m.up_proj(x).sin())), one_row()
    function = registered("pass")
    try:
        gm, context = run_passes(block, x)
        assert context.kinds == {"my_kernel": 1, "linear": 1}
        assert context.counts["use_my_kernel"] == 1
        assert sum(str(node.target) == "mylib.linear.default" for node in gm.graph.nodes) == 1
        out, _ = run_rewritten(block, x)
        torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)
        report = explain(block, x)
        assert "1 linear, 1 my_kernel matched in 1 graph" in str(report)
        _, context = run_passes(block, x, skip=frozenset({"use_my_kernel"}))
        assert context.kinds == {"linear": 2}
    finally:
        passes.unregister(function)
    assert run_passes(block, x)[1].kinds == {"linear": 2}


def test_caches_are_told_what_is_registered():
    from zigpass.inductor_pass import ZigzagPass

    before = ZigzagPass().uuid()
    function = registered("pass")
    try:
        assert ZigzagPass().uuid() != before
    finally:
        passes.unregister(function)
    assert ZigzagPass().uuid() == before


def test_wrong_registrations():
    def fuse_qkv(gm, context):
        return 0

    with pytest.raises(PassError, match="there is no pass 'fuse_kqv'; the list is collect_linears, pack_weight_leaves"):
        passes.register_pass(before="fuse_kqv")(fuse_qkv)
    with pytest.raises(PassError, match="there is a pass 'fuse_qkv' already"):
        passes.register_pass(before="count_linears")(fuse_qkv)
    for function in (fuse_qkv, passes.PASSES[0].run):
        with pytest.raises(PassError, match="is not registered"):
            passes.unregister(function)


@pytest.mark.parametrize("bias", [False, True])
def test_exported_program_is_rewritten_in_place(bias, tmp_path):
    block = packed_block(lambda m, x: m.down_proj(torch.relu(m.gate_proj(x)) * m.up_proj(x)), bias)
    x = one_row()
    program = torch.export.export(block, (x,))
    context = passes.run(program)
    assert context.kinds == {"gated_mlp": 1}
    assert count_ops(program.graph_module, "gated_mlp") == 1
    torch.testing.assert_close(program.module()(x), block(x), rtol=1e-5, atol=1e-5)
    torch.export.save(program, tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2")
    assert count_ops(again.graph_module, "gated_mlp") == 1
    torch.testing.assert_close(again.module()(x), block(x), rtol=1e-5, atol=1e-5)


def test_exported_program_with_more_outputs_keeps_their_order():
    block = packed_block(lambda m, x: (m.down_proj(torch.relu(m.up_proj(x))), x + 1))
    x = one_row()
    program = torch.export.export(block, (x,))
    assert passes.run(program, Context()).kinds == {"mlp": 1}
    for mine, expected in zip(program.module()(x), block(x), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_a_graph_of_dynamo_is_run_the_same_way():
    gm = capture(packed_block(lambda m, x: m.down_proj(torch.relu(m.up_proj(x)))), one_row())
    assert passes.run(gm).kinds == {"mlp": 1}
