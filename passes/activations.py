"""Recognize an activation function in a product of values, however it is written.

A value is first taken apart into a constant and a list of factors (`factors`): products are flattened, so operand
order and grouping do not matter, and `x / 2`, `x.pow(2)`, `x.square()` are products too. SwiGLU is then the factors
[silu(g), u] or, written out, [g, sigmoid(g), u]; the tanh form of GELU is 0.5 * [x, 1 + tanh(...)].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Final

from torch.fx import Node

from .op_table import argument, canonical
from .peel import peel

TOLERANCE: Final = 1e-6
"""Relative difference allowed in a written-out constant such as sqrt(2 / pi)."""
MAX_FACTORS: Final = 16
"""More factors than any pattern has; a chain of squares would double them at every step."""


@dataclasses.dataclass
class Product:
    """constant * factors[0] * factors[1] * ..., and the nodes that were taken apart to see it."""

    constant: float = 1.0
    factors: list[Node] = dataclasses.field(default_factory=list)
    nodes: list[Node] = dataclasses.field(default_factory=list)

    def without(self, factor: Node) -> Product:
        """The product of the other factors (one occurrence of `factor` is left out)."""
        rest = list(self.factors)
        rest.remove(factor)
        return Product(self.constant, rest, self.nodes)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation by the name the op knows, the value it is applied to, and the nodes that express it."""

    name: str
    input: Node
    nodes: tuple[Node, ...]


def take_apart(value: object) -> Product:
    """Flatten a value into a constant and factors that are no products themselves."""
    product = Product()
    _multiply(value, product)
    return product


def _multiply(value: object, product: Product) -> None:
    if isinstance(value, (int, float)):
        product.constant *= value
        return
    node = peel(value, product.nodes)
    if not isinstance(node, Node) or len(product.factors) > MAX_FACTORS:
        product.constant = math.nan  # a symbolic scalar, or too long: no pattern has this constant
        return
    kind = canonical(node)
    if kind == "mul" and len(node.args) == 2 and not node.kwargs:
        product.nodes.append(node)
        _multiply(node.args[0], product)
        _multiply(node.args[1], product)
    elif kind == "div" and not node.kwargs and isinstance(divisor := node.args[1], (int, float)) and divisor:
        product.nodes.append(node)
        product.constant /= divisor
        _multiply(node.args[0], product)
    elif (power := _power(node, kind)) is not None:
        product.nodes.append(node)
        for _ in range(power):
            _multiply(node.args[0], product)
    else:
        product.factors.append(node)


def _power(node: Node, kind: str | None) -> int | None:
    if kind == "square":
        return 2
    exponent = argument(node, 1, "exponent") if kind == "pow" else None
    return int(exponent) if exponent in (2, 3) and isinstance(node.args[0], Node) else None


def find_activation(product: Product) -> Activation | None:
    """The activation that a product of factors is, or None."""
    for recognize in RECOGNIZERS:
        activation = recognize(product)
        if activation is not None:
            nodes = (*product.nodes, *activation.nodes)
            return dataclasses.replace(activation, nodes=tuple(dict.fromkeys(nodes)))
    return None


def _called(product: Product) -> Activation | None:
    """silu(x), relu(x), gelu(x), gelu(x, approximate="tanh")."""
    if product.constant != 1 or len(product.factors) != 1:
        return None
    node = product.factors[0]
    kind = canonical(node)
    if kind not in ("silu", "relu", "gelu"):
        return None
    if kind == "gelu":
        kind = {"none": "gelu", "tanh": "gelu_tanh"}.get(argument(node, 1, "approximate", "none"))
    return _applied(kind, node.args[0] if node.args else None, [node]) if kind else None


def _silu_written_out(product: Product) -> Activation | None:
    """x * sigmoid(x)."""
    if product.constant != 1 or len(product.factors) != 2:
        return None
    for sigmoid, x in (product.factors, product.factors[::-1]):
        nodes = [sigmoid]
        if canonical(sigmoid) == "sigmoid" and peel(sigmoid.args[0], nodes) is x:
            return Activation("silu", x, tuple(nodes))
    return None


def _relu_squared(product: Product) -> Activation | None:
    """relu(x) ** 2, as a power, a square or a product."""
    if product.constant != 1 or len(product.factors) != 2 or product.factors[0] is not product.factors[1]:
        return None
    relu = product.factors[0]
    return _applied("relu2", relu.args[0], [relu]) if canonical(relu) == "relu" else None


def _gelu_written_out(product: Product) -> Activation | None:
    """0.5 * x * (1 + erf(x / sqrt(2))) and 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))."""
    if not _close(product.constant, 0.5) or len(product.factors) != 2:
        return None
    for outer, x in (product.factors, product.factors[::-1]):
        nodes = [outer]
        bent = peel(_plus_one(outer), nodes)
        if not isinstance(bent, Node) or canonical(bent) not in ("erf", "tanh"):
            continue
        nodes.append(bent)
        inner = take_apart(bent.args[0])
        nodes += inner.nodes
        if canonical(bent) == "erf":
            if _close(inner.constant, math.sqrt(0.5)) and inner.factors == [x]:
                return Activation("gelu", x, tuple(nodes))
        elif _close(inner.constant, math.sqrt(2 / math.pi)) and _is_tanh_argument(inner.factors, x, nodes):
            return Activation("gelu_tanh", x, tuple(nodes))
    return None


def _is_tanh_argument(factors: list[Node], x: Node, nodes: list[Node]) -> bool:
    """[x + 0.044715 x^3] or, with x factored out, [x, 1 + 0.044715 x^2]; appends the nodes to `nodes`."""
    if len(factors) == 1 and canonical(factors[0]) == "add" and not _scaled_sum(factors[0]):
        for linear_term, cubic_term in (factors[0].args[:2], factors[0].args[1::-1]):
            trail: list[Node] = []
            cubic = take_apart(cubic_term)
            if peel(linear_term, trail) is x and _close(cubic.constant, 0.044715) and cubic.factors == [x, x, x]:
                nodes += [factors[0], *trail, *cubic.nodes]
                return True
    if len(factors) == 2 and x in factors:
        (other,) = (factor for factor in factors if factor is not x) if factors[0] is not factors[1] else (x,)
        square = take_apart(_plus_one(other))
        if _close(square.constant, 0.044715) and square.factors == [x, x]:
            nodes += [other, *square.nodes]
            return True
    return False


def _plus_one(node: Node) -> object:
    """The t of 1 + t, in either order."""
    if canonical(node) != "add" or _scaled_sum(node):
        return None
    first, second = node.args[:2]
    if isinstance(first, (int, float)):
        first, second = second, first
    return first if isinstance(second, (int, float)) and second == 1 else None


def _scaled_sum(node: Node) -> bool:
    """torch.add(a, b, alpha=...) is not a plain sum; nor is a call with too few arguments."""
    return len(node.args) != 2 or bool(node.kwargs)


def _applied(name: str | None, value: object, nodes: list[Node]) -> Activation | None:
    x = peel(value, nodes)
    return Activation(name, x, tuple(nodes)) if name and isinstance(x, Node) else None


def _close(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=TOLERANCE)


RECOGNIZERS: Final[list[Callable[[Product], Activation | None]]] = [
    _called,
    _silu_written_out,
    _relu_squared,
    _gelu_written_out,
]
