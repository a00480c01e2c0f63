"""Steps of the passes, as people see them."""

import pytest
import torch

from tests.models import quantized_tiny_llama
from tests.passes.graphs import one_row, packed_block
from tests.toys import build, leaky, packed_stack, swiglu
from zigpass.graph_text import as_code, block_of
from zigpass.inspection import inspect_model, inspect_program
from zigpass.passes import OPTIONAL_PASSES, PASSES


@pytest.fixture(scope="module")
def inspection():
    model, args = build()
    return inspect_model(model, args, {}, sparsity=0.5)


def step(inspection, name):
    (found,) = [step for step in inspection.steps if step.name == name]
    return found


def test_there_is_a_step_for_every_pass(inspection):
    assert [step.name for step in inspection.steps] == [item.name for item in PASSES]
    assert [step.number for step in inspection.steps] == list(range(1, len(PASSES) + 1))
    assert all(step.seconds >= 0 and step.summary.endswith(".") for step in inspection.steps)
    assert step(inspection, "fuse_gated_mlp").count == 1


def test_each_step_begins_where_the_one_before_ended(inspection):
    for before, after in zip(inspection.steps, inspection.steps[1:], strict=False):
        assert before.after == after.before
    assert {step.name for step in inspection.steps if step.changed} == {"fuse_gated_mlp", "fuse_qkv"}


def test_diff_shows_the_fusion_with_names_of_the_model(inspection):
    diff = step(inspection, "fuse_gated_mlp").diff()
    (added,) = [line for line in diff if line.startswith("+gated_mlp")]
    assert added.startswith("+gated_mlp: f32[1, 1, 64] = zigpass.gated_mlp(l_args_0_, [")
    assert "[gate_proj.(codes, scale, zero)], [up_proj.(codes, scale, zero)], [down_proj.(codes, scale, zero)]" in added
    assert "mlp_in.threshold, mlp_mid.threshold" in added
    assert sum(line.startswith("-") and "zigpass.linear(" in line for line in diff) == 3
    assert not step(inspection, "count_linears").diff()


def test_regions_name_the_nodes_before_and_after(inspection):
    (region,) = [region for region in step(inspection, "fuse_gated_mlp").regions if not region.reason]
    captured = {line.node: line.text for line in inspection.steps[0].before}
    assert [captured[node].partition(" = ")[2].partition("(")[0] for node in region.before] == [
        "zigpass.linear", "silu", "zigpass.linear", "silu * out_1", "zigpass.linear",
    ]  # fmt: skip
    assert region.after == ("gated_mlp",)
    assert region.modules == ("layers.0.gate_proj", "layers.0.up_proj", "layers.0.down_proj")


def test_near_miss_has_its_reason_and_place(inspection):
    (miss,) = step(inspection, "fuse_gated_mlp").near_misses
    assert miss.reason.startswith("leaky_relu of layers.1.gate_proj is not an activation")
    assert {line.block for line in inspection.steps[0].before if line.node in miss.before} == {"layers.1"}


def test_report_counts_bytes_for_the_sparsity_that_was_asked_for(inspection):
    report = inspection.report
    assert report.kinds == {"gated_mlp": 1, "qkv": 1, "linear": 1}
    assert report.active_bytes < 0.75 * report.packed_bytes


def test_every_graph_of_a_model_with_breaks_is_numbered():
    def breaks(m, x):
        y = swiglu(m, x)
        torch._dynamo.graph_break()
        return swiglu(m, y)

    torch._dynamo.reset()
    inspection = inspect_model(packed_block(breaks), (one_row(),), {})
    assert {step.graph for step in inspection.steps} == {1, 2}
    assert len(inspection.steps) == 2 * len(PASSES)


def test_a_pass_can_be_left_out():
    model, args = build()
    inspection = inspect_model(model, args, {}, skip=frozenset(OPTIONAL_PASSES))
    assert {step.name for step in inspection.steps}.isdisjoint(OPTIONAL_PASSES)
    assert inspection.steps[-1].after == inspection.steps[0].before


def test_exported_program(tmp_path):
    model, args = build()
    torch.export.save(torch.export.export(model, args), tmp_path / "toy.pt2")
    program = torch.export.load(tmp_path / "toy.pt2")
    inspection = inspect_program(program, sparsity=0.5)
    assert inspection.report.kinds == {"gated_mlp": 1, "qkv": 1, "linear": 1}
    rows = {row.name: row for row in inspection.report.rows}
    assert rows["layers.0.down_proj"].kind == "gated_mlp"
    assert rows["layers.1.gate_proj"].note.startswith("aten.leaky_relu.default of layers.1.gate_proj is not")
    assert rows["layers.0.gate_proj"].site == rows["layers.0.up_proj"].site
    assert inspection.report.active_bytes < 0.75 * inspection.report.packed_bytes
    # What was rewritten still runs.
    torch.testing.assert_close(program.module()(*args), model(*args), rtol=1e-4, atol=1e-4)


def test_fused_nodes_belong_to_the_module_that_held_what_they_replaced():
    model, args = build()
    program = torch.export.export(model, args)
    inspect_program(program)
    stacks = {
        node.name: [path for path, _ in node.meta["nn_module_stack"].values()]
        for node in program.graph.nodes
        if "zigpass" in str(node.target)
    }
    assert stacks["gated_mlp"][-1].endswith("layers.0")
    assert stacks["qkv"][-1].endswith("layers.1")


def test_code_of_a_llama_is_cut_into_sections():
    torch._dynamo.reset()
    inspection = inspect_model(quantized_tiny_llama(), (torch.tensor([[5]]),), {})
    code = as_code(inspection.steps[-1].after)
    assert "# model.layers.1.self_attn" in code
    assert "# model.layers.1.mlp" in code
    (mlp,) = [line for line in code if line.startswith("gated_mlp_1: ")]
    assert "[gate_proj.(codes, scale, zero)]" in mlp
    assert code[-1].startswith("return (")


@pytest.mark.parametrize(
    ("module", "block"),
    [("model.layers.3.mlp.gate_proj", "model.layers.3"), ("lm_head", ""), ("layers.0", "layers.0"), ("", "")],
)
def test_block_of(module, block):
    assert block_of(module) == block


def test_stack_of_leaky_blocks_has_only_near_misses():
    torch._dynamo.reset()
    inspection = inspect_model(packed_stack(leaky, leaky), (one_row(),), {})
    assert [len(step.near_misses) for step in inspection.steps if step.name == "fuse_gated_mlp"] == [2]
