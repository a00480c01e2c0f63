"""Find gated MLPs of MatMulNBits nodes in an ONNX graph and put zigpass nodes in their place.

    gate = MatMulNBits(x, ...)
    up   = MatMulNBits(x, ...)                    ->   y = zigpass.GatedMlpSilu4NBits(x, thresholds, weights)
    y    = MatMulNBits(silu(gate) * up, ...)

Weights, scales and zeros stay the tensors that they were, and the body of the new node holds the same ops, so with
thresholds of 0 the result is the same bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase, RewriteRuleSet

from zigpass.runtime import Layout, ZigpassError
from zigpass.runtime.layout import round_up

from .activations import ACTIVATIONS, Activation
from .forms import DOMAIN, VERSION, OpName, WeightForm

MICROSOFT: Final = "com.microsoft"
_KNOWN_ATTRIBUTES: Final = {"K", "N", "bits", "block_size", "accuracy_level"}
_WEIGHTS: Final = ("gate", "up", "down")
_FLOAT32: Final = 1
_UINT8: Final = 2


@dataclasses.dataclass
class Replacements:
    """What the rules did.

    Attributes:
        names: of the MLPs, by the output of their last node.
        ops: how many nodes of each op were written.
        functions: the ops that were written.
        refused: why an MLP stayed as it was, by the name of its last node.
    """

    names: dict[str, str] = dataclasses.field(default_factory=dict)
    ops: dict[str, int] = dataclasses.field(default_factory=dict)
    functions: dict[str, OpName] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)


Thresholds = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""Gives the two thresholds of an MLP, by its name."""


class GatedMlpRule(RewriteRuleClassBase):  # type: ignore[misc]  # onnxscript is not type-checked here
    """One spelling of the activation."""

    def __init__(self, activation: Activation, thresholds: Thresholds, done: Replacements) -> None:
        super().__init__(name=f"GatedMlp{activation.name}")
        self.activation = activation
        self.thresholds = thresholds
        self.done = done

    def pattern(self, op: Any, x: Any) -> Any:
        def nbits(value: Any, name: str) -> Any:
            return op.MatMulNBits(
                value, _domain=MICROSOFT, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=[name]
            )

        gate, up = nbits(x, "gate"), nbits(x, "up")
        return nbits(op.Mul(_PATTERNS[self.activation.name](op, gate), up), "down")

    def check(self, context: Any, gate: Any, up: Any, down: Any, gelu: Any = None, **_: Any) -> Any:
        result = MatchResult()
        if gelu is not None and _approximation(gelu.producer()) != _APPROXIMATIONS[self.activation.name]:
            return result.fail("the other kind of Gelu", gelu.producer())
        nodes = [value.producer() for value in (gate, up, down)]
        reason = _why_not(nodes)
        if reason is not None:
            self.done.refused[nodes[-1].name or down.name] = reason
            return result.fail(reason, nodes[-1])
        return result

    def rewrite(self, op: Any, x: Any, gate: Any, up: Any, down: Any, **_: Any) -> Any:
        import onnx_ir as ir

        nodes = [value.producer() for value in (gate, up, down)]
        inputs = [_inputs(node) for node in nodes]
        name = OpName(WeightForm(_bits(nodes[0]), "NBitsZero" if len(inputs[0]) == 3 else "NBits"), self.activation)
        mlp = mlp_name(nodes[-1])
        attributes: dict[str, Any] = {"bits": _bits(nodes[0]), "accuracy_level": _int(nodes[0], "accuracy_level", 0)}
        for weight, node in zip(_WEIGHTS, nodes, strict=True):
            attributes[f"{weight}_layout"] = layout_of(node).spec
            attributes |= {f"{weight}_{key}": _int(node, key) for key in ("block_size", "N", "K")}
        limits = [
            op.initializer(ir.tensor(value), name=f"{mlp}.{site}.threshold")
            for site, value in zip(("mlp_in", "mlp_mid"), self.thresholds(mlp), strict=True)
        ]
        self.done.ops[str(name)] = self.done.ops.get(str(name), 0) + 1
        self.done.functions[str(name)] = name
        self.done.names[down.name] = mlp
        operands = [value for weight in inputs for value in weight]
        return getattr(op, str(name))(x, *limits, *operands, **attributes, _domain=DOMAIN, _version=VERSION)


def make_rules(thresholds: Thresholds, done: Replacements) -> RewriteRuleSet:
    """Rules for every spelling of an activation, in either order of the operands of a product."""
    rules: list[RewriteRule] = [GatedMlpRule.rule(ACTIVATIONS[name], thresholds, done) for name in _PATTERNS]
    return RewriteRuleSet(rules, commute=True)


_PATTERNS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "Silu": lambda op, gate: op.Mul(gate, op.Sigmoid(gate)),
    "Swish": lambda op, gate: op.Swish(gate),
    "QuickGelu": lambda op, gate: op.QuickGelu(gate, alpha=1.0, _domain=MICROSOFT),
    "Gelu": lambda op, gate: op.Gelu(gate, _allow_other_attributes=True, _outputs=["gelu"]),
    "GeluTanh": lambda op, gate: op.Gelu(gate, _allow_other_attributes=True, _outputs=["gelu"]),
    "MicrosoftGelu": lambda op, gate: op.Gelu(gate, _domain=MICROSOFT),
    "FastGelu": lambda op, gate: op.FastGelu(gate, _domain=MICROSOFT),
    "Relu": lambda op, gate: op.Relu(gate),
}
"""How the spellings of `activations` look in a graph."""
_APPROXIMATIONS: Final = {"Gelu": "none", "GeluTanh": "tanh"}
"""Attribute of a standard Gelu, which a pattern cannot tell from a missing one."""


def check_attributes(model: Any) -> list[str]:
    """What is wrong with the MatMulNBits nodes of a model: attributes that are not known here, by node."""
    problems = []
    for node in matmuls(model):
        unknown = sorted(set(node.attributes) - _KNOWN_ATTRIBUTES)
        if unknown:
            values = ", ".join(f"{name}={node.attributes[name].value!r}" for name in unknown)
            problems.append(f"{node.name or node.outputs[0].name}: {values}")
    return problems


def matmuls(model: Any) -> list[Any]:
    """All MatMulNBits nodes of a model."""
    return [node for node in model.graph.all_nodes() if (node.domain, node.op_type) == (MICROSOFT, "MatMulNBits")]


def mlp_name(down: Any) -> str:
    """The name of an MLP, from the node of its down projection: "/model/layers.0/mlp/down_proj/MatMul_Q4"."""
    parts = (down.name or down.outputs[0].name).strip("/").replace("/", ".").split(".")
    places = [index for index, part in enumerate(parts) if part == "mlp"]
    kept = parts[: places[-1] + 1] if places else parts
    return ".".join(kept)


def layout_of(node: Any) -> Layout:
    """What the native op packs the weight of a MatMulNBits into."""
    n, k = _int(node, "N"), _int(node, "K")
    return Layout(n, k, _bits(node), "in", _int(node, "block_size"), "sub_int", round_up(n, 128))


def _why_not(nodes: list[Any]) -> str | None:
    """Why three MatMulNBits cannot be one zigpass node."""
    for node in nodes:
        inputs = list(node.inputs)
        if _bits(node) not in (4, 8):
            return f"{_bits(node)} bits; 4 and 8 are known"
        if any(value is not None for value in inputs[4:]):
            return "it has a g_idx or a bias"
        if any(value.const_value is None for value in _inputs(node)):
            return "its weights are computed in the graph"
        if len(_inputs(node)) == 3 and inputs[3].dtype is not None and int(inputs[3].dtype) != _UINT8:
            return f"its zero points are {inputs[3].dtype.name}, not packed integers"
        if inputs[2].dtype is not None and int(inputs[2].dtype) != _FLOAT32:
            return f"it computes in {inputs[2].dtype.name}; the ops are float32"
    for what, values in (
        ("bits", [_bits(node) for node in nodes]),
        ("accuracy_level", [_int(node, "accuracy_level", 0) for node in nodes]),
        ("zero points", [len(_inputs(node)) == 3 for node in nodes]),
    ):
        if len(set(values)) > 1:
            return f"gate, up and down differ in {what} {tuple(values)}"
    return None


def _approximation(gelu: Any) -> str:
    attribute = gelu.attributes.get("approximate")
    return "none" if attribute is None else str(attribute.as_string())


def _inputs(node: Any) -> list[Any]:
    """Codes, scale and, if given, zeros."""
    return [value for value in node.inputs[1:4] if value is not None]


def _bits(node: Any) -> Any:
    return _int(node, "bits", 4)


def _int(node: Any, name: str, default: int | None = None) -> int:
    attribute = node.attributes.get(name)
    if attribute is None:
        if default is None:
            raise ZigpassError(f"{node.name}: MatMulNBits without attribute {name}")
        return default
    return int(attribute.as_int())
