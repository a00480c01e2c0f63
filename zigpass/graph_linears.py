"""Quantized linears that are calls in a graph and not modules: what PT2E and `torch.export` make of a model.

`find_graph_linears` gives each of them as a module, `insert_graph_linears` puts these modules into the graph in the
place of the calls. From then on they are linears like any other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from zigpass import passes
from zigpass.passes import Context, Linear, WeightLeaf

from .formats.dequantized_linear import LeafCall


@dataclasses.dataclass(frozen=True)
class GraphLinear:
    """One quantized weight of a graph.

    Attributes:
        name: where its module goes; the name that the layer had before the model became a graph, if there was one.
        module: computes what the calls compute; None where `refusal` says why there is none.
        calls: the linears that multiply with it.
    """

    name: str
    representation: str
    module: nn.Module | None
    refusal: str | None
    calls: tuple[Linear, ...]


def find_graph_linears(gm: GraphModule) -> list[GraphLinear]:
    """Every linear of a graph whose weight the graph dequantizes itself. Changes nothing, copies no weights."""
    context = Context()
    passes.collect_linears(gm, context)
    groups: dict[tuple[object, ...], list[Linear]] = {}
    for linear in context.float_linears:
        if linear.leaf is not None:
            groups.setdefault((_identity(linear.leaf), linear.bias and linear.bias.target), []).append(linear)
    names: set[str] = set()
    found = []
    for calls in groups.values():
        name = _free_name(gm, calls, names)
        names.add(name)
        found.append(_graph_linear(gm, name, calls))
    return found


def insert_graph_linears(gm: GraphModule, chosen: Iterable[GraphLinear]) -> None:
    """Replace calls by modules, and drop the attributes that nothing in the graph reads any more."""
    for linear in chosen:
        assert linear.module is not None
        for call in linear.calls:
            with gm.graph.inserting_before(call.node):
                x = passes.argument(call.node, 0, "input")
                # Not `call_module`, which wants the module to be there already: another may be in its place yet.
                new = gm.graph.create_node("call_module", linear.name, (x,))
            new.meta = dict(call.node.meta)
            call.node.replace_all_uses_with(new)
            _erase_unused(gm, call.node)
        gm.add_submodule(linear.name, linear.module)
    gm.recompile()


def _graph_linear(gm: GraphModule, name: str, calls: list[Linear]) -> GraphLinear:
    leaf, bias = calls[0].leaf, calls[0].bias
    assert leaf is not None
    refusal = leaf.refusal
    nodes = [*leaf.sources, *([] if bias is None else [bias])]
    values = {node: value for node in nodes if (value := _value(gm, node)) is not None}
    missing = [node.name for node in nodes if node not in values]
    if missing and refusal is None:
        refusal = f"{missing[0]} is an input of the graph, not a tensor that it holds"
    module = None
    if refusal is None:
        tensors = [values[source] for source in leaf.sources]
        module = LeafCall.of(leaf).module(tensors, None if bias is None else values[bias])
        # The graph itself need not know the sizes of what it holds.
        num_bytes = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        calls = [dataclasses.replace(call, num_bytes=num_bytes) for call in calls]
    return GraphLinear(name, leaf.representation, module, refusal, tuple(calls))


def _value(gm: GraphModule, node: Node) -> Tensor | None:
    """The tensor that a graph holds under a node, or a part of it; None for an input."""
    if node.op == "get_attr":
        value: Tensor = functools.reduce(getattr, str(node.target).split("."), gm)  # type: ignore[assignment]
        return value
    if passes.canonical(node) == "inner_tensor":
        whole = _value(gm, node.all_input_nodes[0])
        return None if whole is None else getattr(whole, str(node.args[1]))
    return None


def _identity(leaf: WeightLeaf) -> tuple[object, ...]:
    """The same for two leaves of one weight."""
    return (leaf.representation, *((source.target, source.args) for source in leaf.sources))


def _free_name(gm: GraphModule, calls: list[Linear], taken: set[str]) -> str:
    """The name of the layer, unless a module of this name is still needed for something else."""
    name, node = calls[0].module, calls[0].node
    own = {node for call in calls for node in _only_for(call.node)}
    used = any(
        other.op in ("get_attr", "call_module") and f"{other.target}.".startswith(f"{name}.") and other not in own
        for other in gm.graph.nodes
    )
    return f"{name}_{node.name}".replace(".", "_") if name in taken or used else name


def _only_for(call: Node) -> set[Node]:
    """A linear and what is read or dequantized for it alone; not its x."""
    found, pending = {call}, call.all_input_nodes[1:]
    while pending:
        node = pending.pop()
        if node.op != "placeholder" and node not in found and all(user in found for user in node.users):
            found.add(node)
            pending += node.all_input_nodes
    return found


def _erase_unused(gm: GraphModule, call: Node) -> None:
    """Erase a call without users, and what was read or dequantized for it alone; x is not touched."""
    pending = [call]
    while pending:
        node = pending.pop()
        if node.users:
            continue
        sources = node.all_input_nodes[1:] if node is call else node.all_input_nodes
        gm.graph.erase_node(node)
        if node.op == "get_attr" and not any(
            other.op == "get_attr" and other.target == node.target for other in gm.graph.nodes
        ):
            _delete(gm, str(node.target))
        pending += sources


def _delete(gm: GraphModule, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    delattr(gm.get_submodule(owner), leaf)
