"""What is unusual about a value that is nearly the middle of an MLP: a reason instead of a silent no-match."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Node

from .activations import Product, find_activation, take_apart
from .context import Linear
from .names import joined
from .op_table import canonical, spelled
from .peel import is_active_dropout, peel
from .values import fixed_shape

KNOWN = "silu, gelu, gelu_tanh, relu, relu2"
_STRUCTURAL = frozenset({"transpose", "permute", "softmax", "layer_norm", "rms_norm", "getattr", "expand"})
_MAX_DEPTH = 4


def explain_mlp(down: Linear, linears: Mapping[Node, Linear]) -> tuple[list[Linear], str] | None:
    """The linears of a near miss that ends in `down` and the reason; None when nothing there resembles an MLP."""
    middle = take_apart(down.x)
    dropout = next((factor for factor in middle.factors if is_active_dropout(factor)), None)
    if dropout is not None:
        found = _linears_near(dropout, linears)
        reason = f"{dropout.name} is a dropout in training mode: call model.eval() before compiling"
        return ([*found, down], reason) if found else None
    direct = [linears[factor] for factor in dict.fromkeys(middle.factors) if factor in linears]
    others = [factor for factor in dict.fromkeys(middle.factors) if factor not in linears]
    whole = next((base for factor in others if (base := _cut_linear(factor, linears)) is not None), None)
    if whole is not None:
        reason = f"gate and up are parts of one linear ({whole.module}); gated_mlp needs two packed weights"
        return [whole, down], reason
    if direct and not others:
        return _explain_bare_product(middle, direct, down)
    if direct:
        return _explain_factors(middle, direct, others, linears, down)
    return _explain_other(middle, linears, down)


def _explain_bare_product(middle: Product, direct: list[Linear], down: Linear) -> tuple[list[Linear], str] | None:
    if len(middle.factors) < 2:
        return None  # a linear of a linear: nothing to fuse and nothing unusual
    names = joined([linear.module for linear in direct])
    return [*direct, down], f"{names} are multiplied without an activation ({KNOWN})"


def _explain_factors(
    middle: Product, direct: list[Linear], others: list[Node], linears: Mapping[Node, Linear], down: Linear
) -> tuple[list[Linear], str]:
    unscaled = Product(1.0, middle.factors, middle.nodes)
    for linear in direct:
        activation = find_activation(unscaled.without(linear.node))
        if activation is not None and activation.input in linears:
            involved = [linears[activation.input], *direct, down]
            return involved, f"the middle is scaled by {middle.constant:g}, which gated_mlp cannot express"
    involved = [*(found for other in others for found in _linears_near(other, linears)), *direct, down]
    under = [source for other in others if (source := _unary_source(other, linears)) is not None]
    if under:
        return involved, _unknown_activation(others[0], under[0])
    what = f"{others[0].name} ({spelled(others[0])})"
    return involved, f"{direct[0].module} is multiplied by {what}, which is not an activation of a linear"


def _explain_other(middle: Product, linears: Mapping[Node, Linear], down: Linear) -> tuple[list[Linear], str] | None:
    if len(middle.factors) == 1 and (source := _unary_source(middle.factors[0], linears)) is not None:
        if find_activation(Product(1.0, middle.factors)) is not None:
            return [source, down], f"the middle is scaled by {middle.constant:g}, which gated_mlp cannot express"
        return [source, down], _unknown_activation(middle.factors[0], source)
    if not any(_multiplies(factor) for factor in middle.factors):
        return None
    near = [linear for factor in middle.factors for linear in _linears_near(factor, linears)]
    shared = [linear for linear in near if any(other is not linear and other.x is linear.x for other in near)]
    if not shared:
        return None
    steps = ", ".join(dict.fromkeys(spelled(factor) for factor in middle.factors))
    return [*shared, down], f"the middle ({steps}) is not a product of an activation and a linear"


def _unknown_activation(node: Node, source: Linear) -> str:
    return f"{spelled(node)} of {source.module} is not an activation gated_mlp knows ({KNOWN})"


def _unary_source(node: Node, linears: Mapping[Node, Linear]) -> Linear | None:
    """The packed linear that an elementwise-looking operation is applied to."""
    if node.op not in ("call_function", "call_method") or len(node.all_input_nodes) != 1:
        return None
    if canonical(node) in ("part", "reshape", "add") or any(word in spelled(node) for word in _STRUCTURAL):
        return None
    source = peel(node.all_input_nodes[0])
    linear = linears.get(source) if isinstance(source, Node) else None
    return linear if linear is not None and linear.packed else None


def _cut_linear(node: Node, linears: Mapping[Node, Linear]) -> Linear | None:
    """The packed linear that a value is a chunk or slice of, looking through one activation."""
    for start in (node, *node.all_input_nodes[:1]):
        value: object = start
        while isinstance(value, Node) and canonical(value) == "part":
            value = peel(value.args[0])
        if value is not start and isinstance(value, Node) and value in linears and linears[value].packed:
            return linears[value]
    return None


def _linears_near(node: Node, linears: Mapping[Node, Linear], depth: int = _MAX_DEPTH) -> list[Linear]:
    """Packed linears that feed a node through at most `depth` operations that keep its shape."""
    if node in linears:
        return [linears[node]] if linears[node].packed else []
    found = [linear for source in _sources(node, depth) for linear in _linears_near(source, linears, depth - 1)]
    return list({linear.node: linear for linear in found}.values())


def _multiplies(node: Node, depth: int = _MAX_DEPTH) -> bool:
    """Whether a product of two values feeds a node (or is it)."""
    if canonical(node) == "mul" and len(node.all_input_nodes) == 2:
        return True
    return any(_multiplies(source, depth - 1) for source in _sources(node, depth))


def _sources(node: Node, depth: int) -> list[Node]:
    """Inputs of the same shape: what an elementwise operation reads, but not what attention or a norm reads."""
    shape = fixed_shape(node)
    if depth == 0 or shape is None or node.op not in ("call_function", "call_method"):
        return []
    return [source for source in node.all_input_nodes if fixed_shape(source) == shape]
