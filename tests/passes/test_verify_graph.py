import pytest
import torch
from torch._subclasses import FakeTensorMode

from tests.passes.graphs import capture, one_row, packed_block
from zigpass import passes
from zigpass.passes import PassError
from zigpass.passes.verify_graph import verify_graph


def rewritten():
    block = packed_block(lambda m, x: m.down_proj(torch.relu(m.up_proj(x))))
    gm = capture(block, one_row())
    return gm, passes.run(gm)


def test_fused_nodes_that_agree_are_counted():
    gm, context = rewritten()
    assert verify_graph(gm, context) == 1


@pytest.mark.parametrize(("shape", "dtype"), [((1, 1, 65), torch.float32), ((1, 1, 64), torch.bfloat16)])
def test_fused_node_that_gives_something_else_is_an_error(shape, dtype):
    gm, context = rewritten()
    with FakeTensorMode():
        context.fusions[0].node.meta["example_value"] = torch.empty(shape, dtype=dtype)
    with pytest.raises(PassError, match=r"gives torch\..*, the nodes it replaced gave torch.float32 \(1, 1, 64\)"):
        verify_graph(gm, context)


def test_broken_graph_is_an_error():
    gm, context = rewritten()
    fused = context.fusions[0].node
    fused.append(fused.all_input_nodes[0])  # now it reads an input that comes later
    with pytest.raises(RuntimeError, match="was used before it has been defined"):
        verify_graph(gm, context)
