"""Let linears whose weight the graph dequantizes itself multiply with a packed weight instead.

    w = torchao.dequantize_affine(codes, ...)
    y = aten.linear(x, w, bias)                  ->      y = zigpass.linear(x, [packed...], bias, None, layout)

Where the packed tensors come from is the business of `Context.packer`; without one nothing is changed.
"""

from __future__ import annotations

from torch.fx import GraphModule

from .collect_linears import collect_linears
from .context import Context, Fusion, Linear, PackedLeaf
from .op_table import argument
from .rewrite import insert_op
from .values import fake_value

NO_PACKER = (
    "torch.compile packs it when it runs, keeps both copies and has no threshold for it; zigpass.prepare packs it once"
)


def pack_weight_leaves(gm: GraphModule, context: Context) -> int:
    """Replace every linear of a quantized weight that the packer takes; return how many."""
    count = 0
    for linear in context.float_linears:
        if linear.leaf is None:
            continue
        packed = linear.leaf.refusal or (NO_PACKER if context.packer is None else context.packer(gm, linear))
        if isinstance(packed, PackedLeaf):
            _replace(gm, context, linear, packed)
            count += 1
        else:
            reason = f"{linear.module} is quantized ({linear.leaf.representation}), but not packed: {packed}"
            context.refuse("linear", [linear], reason)
    if count:
        collect_linears(gm, context)
    return count


def _replace(gm: GraphModule, context: Context, linear: Linear, packed: PackedLeaf) -> None:
    # Read anew: its input may have been such a linear.
    x = argument(linear.node, 0, "input")
    args = (x, list(packed.tensors), linear.bias, None, packed.layout)
    node = insert_op(gm.graph, linear.node, "linear", args, like=linear.node)
    context.fusions.append(Fusion(node, (fake_value(linear.node),)))
    linear.node.replace_all_uses_with(node)
    gm.graph.erase_node(linear.node)
    unused = linear.weight[0]
    while unused.op in ("call_function", "call_method") and not unused.users:
        before, unused = unused, unused.all_input_nodes[0]
        gm.graph.erase_node(before)
