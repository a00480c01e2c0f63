"""Weights that a graph holds quantized and dequantizes itself: typed leaves.

    weight = torchao.dequantize_affine(codes, [1, 32], scale, zero, torch.int8, -8, 7)
    out    = aten.linear(x, weight, bias)

Such a call says all there is to know about its codes. An input that is a tensor subclass of torchao is a leaf too:
its type says it.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from torch.fx import Node

from .op_table import canonical, schema_name
from .peel import peel
from .values import fixed_shape, tensor_of

SUBCLASS_PACKAGES: Final = ("torchao",)
"""Where tensor subclasses with codes and scales come from."""


@dataclasses.dataclass(frozen=True, eq=False)
class WeightLeaf:
    """A quantized weight of a graph.

    Attributes:
        node: the call that dequantizes it, or the input that holds it as a tensor subclass.
        sources: the inputs or attributes that hold its tensors.
        representation: what it is, for people.
        refusal: why it cannot be packed, as a sentence; None when nothing in the graph is in the way.
    """

    node: Node
    sources: tuple[Node, ...]
    representation: str
    refusal: str | None = None


def find_weight_leaf(weight: object, x: object) -> WeightLeaf | None:
    """The quantized weight that a linear multiplies with; None when it is a float weight.

    Args:
        weight: the weight argument of the linear.
        x: its input, which must not be quantized too.
    """
    node = peel(weight)
    if not isinstance(node, Node) or fixed_shape(node) != fixed_shape(weight):
        return None
    if is_stored(node):
        kind = type(tensor_of(node))
        package = kind.__module__.partition(".")[0]
        return WeightLeaf(node, (node,), f"{package} {kind.__name__}") if package in SUBCLASS_PACKAGES else None
    if canonical(node) != "dequantize":
        return None
    sources = tuple(node.all_input_nodes)
    computed = [source for source in sources if not is_stored(source)]
    quantized_input = peel(x)
    refusal = None
    if computed:
        refusal = f"its codes or scales are computed in the graph ({computed[0].name}), not stored"
    elif canonical(quantized_input) == "dequantize":
        refusal = f"its input is quantized too ({quantized_input}); zigpass takes weight-only quantization"
    return WeightLeaf(node, sources, str(schema_name(node)).replace("::", "."), refusal)


def is_stored(node: Node) -> bool:
    """Whether a node holds a tensor that exists before the graph runs, or a part of one."""
    if canonical(node) == "inner_tensor":
        return isinstance(node.args[0], Node) and is_stored(node.args[0])
    return node.op in ("placeholder", "get_attr")
