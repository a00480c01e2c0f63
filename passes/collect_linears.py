"""Find every linear layer of a graph: the packed ones, and the float ones for the report."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch.fx import GraphModule, Node

from .context import Context, Linear
from .names import module_name
from .op_table import argument, canonical
from .values import num_rows, shape_of, tensor_of
from .weight_leaves import find_weight_leaf


def collect_linears(gm: GraphModule, context: Context) -> int:
    """Fill `context.linears` with the linears of the graph in order; return how many are packed."""
    # A run starts here: forget the nodes of an earlier one, which may have been erased.
    context.linears.clear()
    thresholds: dict[int, Node] = {}
    for node in gm.graph.nodes:
        linear = _read_linear(node)
        if linear is not None:
            context.linears[node] = _with_one_threshold_node(gm, linear, thresholds)
    return len(context.packed_linears)


def _with_one_threshold_node(gm: GraphModule, linear: Linear, thresholds: dict[int, Node]) -> Linear:
    """Name one threshold by one node. Dynamo does so already; a trace by hand reads the attribute at every use."""
    node = linear.threshold
    if node is None or node.op != "get_attr":
        return linear
    tensor = functools.reduce(getattr, str(node.target).split("."), gm)
    return dataclasses.replace(linear, threshold=thresholds.setdefault(id(tensor), node))


def _read_linear(node: Node) -> Linear | None:
    kind = canonical(node)
    if kind == "packed_linear":
        weight, threshold = argument(node, 1, "weight"), argument(node, 3, "threshold")
        layout = str(argument(node, 4, "layout"))
        return _linear(node, argument(node, 0, "x"), weight, argument(node, 2, "bias"), threshold, layout)
    if kind == "linear":
        x, weight = argument(node, 0, "input"), argument(node, 1, "weight")
        linear = _linear(node, x, [weight], argument(node, 2, "bias"))
        leaf = find_weight_leaf(weight, x)
        if linear is None or leaf is None:
            return linear
        return dataclasses.replace(linear, leaf=leaf, num_bytes=sum(_num_bytes(source) for source in leaf.sources))
    if kind == "addmm":  # transformers' Conv1D: x @ W + b with W [K, N]
        bias, x, weight = argument(node, 0, "input"), argument(node, 1, "mat1"), argument(node, 2, "mat2")
        return _linear(node, x, [weight], bias)
    return None


def _linear(
    node: Node, x: object, weight: object, bias: object, threshold: object = None, layout: str | None = None
) -> Linear | None:
    out_shape, in_shape = shape_of(node), shape_of(x)
    nodes = tuple(item for item in weight if isinstance(item, Node)) if isinstance(weight, (list, tuple)) else ()
    # Without shapes (a graph traced by hand and not shape-propagated) nothing can be checked, so nothing is claimed.
    if out_shape is None or in_shape is None or not isinstance(x, Node) or not nodes:
        return None
    n, k = out_shape[-1], in_shape[-1]
    if isinstance(n, torch.SymInt) or isinstance(k, torch.SymInt):
        return None
    rows = num_rows(x)
    return Linear(
        node=node,
        x=x,
        packed=layout is not None,
        weight=nodes,
        bias=bias if isinstance(bias, Node) else None,
        threshold=threshold if isinstance(threshold, Node) else None,
        layout=layout,
        n=n,
        k=k,
        rows=rows if isinstance(rows, int) else None,
        module=module_name(node),
        num_bytes=sum(_num_bytes(item) for item in nodes),
    )


def _num_bytes(node: Node) -> int:
    tensor = tensor_of(node)
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
