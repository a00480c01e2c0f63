"""A copy of a graph module to rewrite.

The graph that Dynamo hands to a backend stays Dynamo's: it looks at its nodes again after the backend returns, when
it builds guards.
"""

from __future__ import annotations

import copy

from torch.fx import Graph, GraphModule, Node

_ATTRIBUTES = ("_param_name_to_source", "_backend_id", "compile_subgraph_reason")


def clone_graph_module(gm: GraphModule) -> GraphModule:
    """Copy graph, node metadata and subgraphs; parameters and buffers are shared, never copied."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        copies[node] = copied = graph.node_copy(node, copies.__getitem__)
        # Where an input comes from is an attribute of its node, not part of its meta; Inductor looks for it.
        if hasattr(node, "_dynamo_source"):
            copied._dynamo_source = node._dynamo_source
    clone = GraphModule(gm, graph, type(gm).__name__)
    clone.meta = copy.copy(gm.meta)
    for name in _ATTRIBUTES:
        if hasattr(gm, name):
            setattr(clone, name, getattr(gm, name))
    for name, child in subgraphs(clone).items():
        setattr(clone, name, clone_graph_module(child))
    return clone


def subgraphs(gm: GraphModule) -> dict[str, GraphModule]:
    """The graph modules that this one calls (regions, branches), by attribute name."""
    names = [str(node.target) for node in gm.graph.nodes if node.op == "get_attr" and "." not in str(node.target)]
    found = {name: getattr(gm, name, None) for name in dict.fromkeys(names)}
    return {name: child for name, child in found.items() if isinstance(child, GraphModule)}
