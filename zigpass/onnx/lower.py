"""Put the nodes of domain `zigpass` in the place of the traced ops, with weights in the forms that ONNX has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.linear import ZigzagLinear, find_linears
from zigpass.runtime import Layout, PackedWeight
from zigpass.sites import Site

from .activations import OF_TORCH, Activation
from .bodies import make_function
from .forms import DOMAIN, VERSION, OpName
from .translate import LINEAR_INPUTS, MLP_INPUTS, TRACED_DOMAIN
from .weights import StoredWeight, is_nibbles

METADATA: Final = "zigpass."
"""What the keys of zigpass's metadata start with."""
_ASIDE: Final = "traced/"


@dataclasses.dataclass(frozen=True)
class Operand:
    """One weight of a traced node.

    Attributes:
        name: qualified name of its linear.
        stored: the weight.
        bias, perm: as the torch op takes them.
        site: whose threshold it reads; None for a linear that is never sparse.
    """

    name: str
    stored: StoredWeight
    bias: Tensor | None
    perm: Tensor | None
    site: Site | None


class Lowering:
    """Replaces all traced nodes of one model.

    Args:
        model: `onnx_ir.Model` that `translate` gave; changed in place.
        module: says which linear and which site a tensor belongs to, by the tensor's name in the graph.
        opset: of the default domain.

    Attributes:
        ops: how many nodes of each op were written.
        slow: linears for which stock onnxruntime has no fast kernel, with the reason.
    """

    def __init__(self, model: Any, module: nn.Module, opset: int) -> None:
        self.model = model
        self.opset = opset
        self.linears = dict(find_linears(module))
        self.ops: dict[str, int] = {}
        self.slow: dict[str, str] = {}
        self._functions: dict[str, OpName] = {}
        self._initializers: dict[str, Any] = {}
        self._stored: dict[tuple[int, ...], tuple[str, StoredWeight]] = {}

    def run(self) -> None:
        """Replace every traced node."""
        import onnx_ir as ir
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        traced = [node for node in self.model.graph if node.domain == TRACED_DOMAIN]
        self._set_aside({value for node in traced for value in node.inputs})
        for node in traced:
            tape = ir.tape.Tape()
            y = self._linear(tape, node) if node.op_type == "Linear" else self._mlp(tape, node)
            old = node.outputs
            ir.convenience.replace_nodes_and_values(self.model.graph, node, [node], tape.nodes, old, [y])
        for op in self._functions.values():
            function = ir.serde.deserialize_function(make_function(op, self.opset))
            self.model.functions[function.identifier()] = function
        self.model.opset_imports.pop(TRACED_DOMAIN, None)
        self.model.opset_imports[DOMAIN] = VERSION
        RemoveUnusedNodesPass()(self.model)

    def _set_aside(self, values: set[Any]) -> None:
        """Rename initializers that will go, so that new ones can have their names."""
        initializers = self.model.graph.initializers
        for name in [name for name, value in initializers.items() if value in values]:
            value = initializers.pop(name)
            value.name = f"{_ASIDE}{name}"
            initializers[value.name] = value

    def _linear(self, tape: Any, node: Any) -> Any:
        inputs = _by_name(LINEAR_INPUTS, node)
        operand = self._operand(inputs, "", "threshold", node.attributes["layout"].as_string())
        x, back = _to_float32(tape, inputs["x"])
        return back(self._emit_linear(tape, x, operand, inputs["threshold"]))

    def _mlp(self, tape: Any, node: Any) -> Any:
        inputs = _by_name(MLP_INPUTS, node)

        def operand(weight: str, threshold: str) -> Operand:
            return self._operand(inputs, f"{weight}_", threshold, node.attributes[f"{weight}_layout"].as_string())

        up, down = operand("up", "threshold_in"), operand("down", "threshold_mid")
        gate = operand("gate", "threshold_in") if inputs["gate_codes"] is not None else None
        activation = OF_TORCH[node.attributes["activation"].as_string()]
        threshold_in, threshold_mid = inputs["threshold_in"], inputs["threshold_mid"]
        x, back = _to_float32(tape, inputs["x"])
        if gate is not None and _fusible(gate, up, down):
            thresholds = [self._threshold(gate, threshold_in), self._threshold(down, threshold_mid)]
            name = down.name.rpartition(".")[0]
            return back(self._emit(tape, OpName(gate.stored.form, activation), name, x, thresholds, [gate, up, down]))
        middle = self._emit_linear(tape, x, up, threshold_in)
        if gate is None:
            middle = _activate(tape, activation, middle, self.opset)
        else:
            gated = self._emit_linear(tape, x, gate, threshold_in)
            middle = tape.op("Mul", [_activate(tape, activation, gated, self.opset), middle])
        return back(self._emit_linear(tape, middle, down, threshold_mid))

    def _operand(self, inputs: dict[str, Any], prefix: str, threshold: str, spec: str) -> Operand:
        tensors = [_tensor(inputs[f"{prefix}{part}"]) for part in ("codes", "scale", "zero", "perm")]
        given = tuple(tensor for tensor in tensors if tensor is not None)
        name = inputs[f"{prefix}codes"].name.removeprefix(_ASIDE).removesuffix(".codes")
        site = _site_of(self.linears.get(name), _tensor(inputs[threshold]))
        name, stored = self._store(name, Layout.parse(spec), given)
        return Operand(name, stored, _tensor(inputs[f"{prefix}bias"]), tensors[3], site)

    def _store(self, name: str, layout: Layout, tensors: tuple[Tensor, ...]) -> tuple[str, StoredWeight]:
        """The stored form of a weight, once for each; equal tensors of two weights may have been made one."""
        key = tuple(tensor.data_ptr() for tensor in tensors)
        if key not in self._stored:
            taken = {other for other, _ in self._stored.values()}
            unique = name
            while unique in taken:
                unique += "_"
            stored = StoredWeight.of(PackedWeight(layout, tensors))
            self._stored[key] = unique, stored
            if not stored.runs_fused:
                self.slow[unique] = _why_slow(stored)
        return self._stored[key]

    def _emit_linear(self, tape: Any, x: Any, operand: Operand, threshold: Any) -> Any:
        """Nodes for one linear; x and the result are float32."""
        limit = self._threshold(operand, threshold)
        if operand.perm is not None:
            order = self._constant(f"{operand.name}.perm", operand.perm.long())
            x = tape.op("Gather", [x, order], {"axis": -1})
            if limit.shape[0] != 1:
                limit = tape.op("Gather", [limit, order], {"axis": 0})
        y = self._emit(tape, OpName(operand.stored.form), operand.name, x, [limit], [operand])
        if operand.bias is not None:
            y = tape.op("Add", [y, self._constant(f"{operand.name}.bias", operand.bias.float())])
        return y

    def _emit(self, tape: Any, op: OpName, name: str, x: Any, thresholds: list[Any], operands: list[Operand]) -> Any:
        import onnx_ir as ir

        attributes: dict[str, Any] = {}
        weights = []
        for prefix, operand in zip(op.weights, operands, strict=True):
            stored = operand.stored
            attributes[f"{prefix}layout"] = stored.layout.spec
            if op.form.zero == "Column":
                attributes[f"{prefix}num_rows"] = stored.layout.n
            else:
                attributes[f"{prefix}group_size"] = stored.layout.group_size
            weights += [self._weight(operand.name, stored, part) for part in op.form.parts]
        self.ops[str(op)] = self.ops.get(str(op), 0) + 1
        self._functions[str(op)] = op
        path = re.sub(r"\.(?!\d)", "/", name)
        y = tape.op(
            str(op),
            [x, *thresholds, *weights],
            attributes,
            domain=DOMAIN,
            version=VERSION,
            name=f"/{path}/{'Linear' if op.activation is None else 'GatedMlp'}",
            metadata_props=_metadata(operands),
        )
        y.dtype = ir.DataType.FLOAT
        if x.shape is not None:
            y.shape = ir.Shape([*x.shape[:-1], operands[-1].stored.layout.n])
        return y

    def _threshold(self, operand: Operand, traced: Any) -> Any:
        """The initializer of a threshold, one for each site."""
        if operand.site is not None:
            return self._constant(f"{operand.site.name}.threshold", operand.site.threshold)
        value = _tensor(traced)
        return self._constant(f"{operand.name}.threshold", torch.zeros(1) if value is None else value)

    def _weight(self, name: str, stored: StoredWeight, part: str) -> Any:
        import onnx_ir as ir

        full = f"{name}.{part}"
        if not is_nibbles(stored.form, part):
            return self._constant(full, stored.scales[part])
        shape = ir.Shape(stored.shape(part))

        def make() -> Any:
            return ir.PackedTensor(stored.read(part).cpu().numpy(), ir.DataType.UINT4, shape=shape, name=full)

        return self._initializer(full, lambda: ir.LazyTensor(make, ir.DataType.UINT4, shape, name=full))

    def _constant(self, name: str, tensor: Tensor) -> Any:
        import onnx_ir as ir

        return self._initializer(name, lambda: ir.tensor(tensor.detach().cpu().contiguous().numpy(), name=name))

    def _initializer(self, name: str, make: Callable[[], Any]) -> Any:
        import onnx_ir as ir

        if name not in self._initializers:
            tensor = make()
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            self.model.graph.register_initializer(value)
            self._initializers[name] = value
        return self._initializers[name]


def _by_name(names: Sequence[str], node: Any) -> dict[str, Any]:
    """The inputs of a node; the exporter leaves missing ones at the end out."""
    return {**dict.fromkeys(names), **dict(zip(names, node.inputs, strict=False))}


def _fusible(*operands: Operand) -> bool:
    """Whether one `GatedMlp` node can hold three weights."""
    plain = all(operand.bias is None and operand.perm is None for operand in operands)
    return plain and len({operand.stored.form for operand in operands}) == 1


def _site_of(linear: ZigzagLinear | None, threshold: Tensor | None) -> Site | None:
    """The site of a linear, if it has the threshold that was traced."""
    if linear is None or linear.site is None or threshold is None:
        return None
    return linear.site if torch.equal(linear.site.threshold, threshold) else None


def _tensor(value: Any) -> Tensor | None:
    """The torch tensor of an initializer."""
    return None if value is None else value.const_value.raw.detach()


def _to_float32(tape: Any, x: Any) -> tuple[Any, Callable[[Any], Any]]:
    """x as float32, and how to bring a result back to x's dtype."""
    import onnx_ir as ir

    if x.dtype == ir.DataType.FLOAT:
        return x, lambda y: y
    wide = tape.op("Cast", [x], {"to": int(ir.DataType.FLOAT)})
    wide.dtype, wide.shape = ir.DataType.FLOAT, x.shape
    return wide, lambda y: tape.op("Cast", [y], {"to": int(x.dtype)})


def _activate(tape: Any, activation: Activation, gate: Any, opset: int) -> Any:
    """The nodes of an activation outside of an MLP node."""
    import onnx.parser

    text = f'<domain: "local", opset_import: ["" : {opset}]> Activation (gate) => (activated) {{\n{activation.body}\n}}'
    values = {"gate": gate}
    for node in onnx.parser.parse_function(text).node:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
        values[node.output[0]] = tape.op(node.op_type, [values[name] for name in node.input], plain)
    return values["activated"]


def _metadata(operands: list[Operand]) -> dict[str, str]:
    """For people: which linears a node is, and the sparsity that its thresholds were chosen for."""
    metadata = {f"{METADATA}modules": ", ".join(operand.name for operand in operands)}
    targets = {
        operand.site.kind: operand.site.target_sparsity
        for operand in operands
        if operand.site is not None and operand.site.target_sparsity is not None
    }
    if targets:
        metadata[f"{METADATA}target_sparsity"] = ", ".join(f"{kind} {value:.4f}" for kind, value in targets.items())
    return metadata


def _why_slow(stored: StoredWeight) -> str:
    if stored.form.zero == "Column":
        return 'scale_axis="out" has no fast form in stock runtimes'
    return f"groups of {stored.layout.group_size}: stock onnxruntime is fast on powers of two from 16"
