"""From a torch.export program to an ONNX graph in which the zigpass ops are still as torch has them.

torch's exporter inlines every function it is given, so the ops go through it as nodes of a domain of their own, with
the packed tensors as inputs; `lower` then puts the nodes of domain `zigpass` in their place.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from zigpass.runtime import ZigpassError

TRACED_DOMAIN: Final = "zigpass.traced"
LEAST_OPSET: Final = 21
MOST_OPSET: Final = 25
"""`DequantizeLinear` has blocks since 21. For more than 25 torch's exporter silently writes another one."""

_WEIGHT: Final = ("codes", "scale", "zero", "perm")
LINEAR_INPUTS: Final = ("x", *_WEIGHT, "bias", "threshold")
MLP_INPUTS: Final = (
    "x",
    *(f"{weight}_{part}" for weight in ("gate", "up", "down") for part in (*_WEIGHT, "bias")),
    "threshold_in",
    "threshold_mid",
)

_TENSOR_TYPES: Final = [f"tensor({name})" for name in ("float", "float16", "bfloat16", "int32", "uint8")]


def check_opset(opset: int) -> None:
    """
    Raises:
        ZigpassError: an opset that the function bodies or torch's exporter do not have.
    """
    if not LEAST_OPSET <= opset <= MOST_OPSET:
        raise ZigpassError(
            f"opset {opset} is not supported: {LEAST_OPSET} (runs everywhere) to {MOST_OPSET};"
            f" 4-bit DequantizeLinear with blocks came in {LEAST_OPSET}"
        )


def translate(program: ExportedProgram, opset: int) -> Any:
    """An `onnx_ir.Model` of a program.

    Raises:
        ZigpassError: torch's exporter cannot translate an op of the model, or not for this opset.
    """
    try:
        with _quiet():
            onnx_program: Any = torch.onnx.export(
                program, dynamo=True, opset_version=opset, verbose=False, custom_translation_table=_table()
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ZigpassError(f"torch.onnx cannot translate the model: {error}") from error
    model = onnx_program.model
    if model.opset_imports.get("") != opset:
        raise ZigpassError(f"torch.onnx wrote opset {model.opset_imports.get('')} instead of {opset}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about its own tree types, and about torchvision, which nobody asked for."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        registration.setLevel(level)


def _table() -> dict[Any, Any]:
    linear = _opaque("Linear", LINEAR_INPUTS, ("layout",))
    mlp = _opaque("GatedMlp", MLP_INPUTS, ("gate_layout", "up_layout", "down_layout", "activation"))

    # The exporter matches arguments by name, so these are the names of the torch ops' schemas.
    def translate_linear(x: Any, weight: Any, bias: Any = None, threshold: Any = None, layout: str = "") -> Any:
        return linear(x, *_four(weight), bias, threshold, layout=layout)

    def translate_mlp(
        x: Any,
        gate: Any,
        up: Any,
        down: Any,
        gate_bias: Any = None,
        up_bias: Any = None,
        down_bias: Any = None,
        threshold_in: Any = None,
        threshold_mid: Any = None,
        gate_layout: str = "",
        up_layout: str = "",
        down_layout: str = "",
        activation: str = "",
    ) -> Any:
        weights = (*_four(gate), gate_bias, *_four(up), up_bias, *_four(down), down_bias)
        layouts = {"gate_layout": gate_layout, "up_layout": up_layout, "down_layout": down_layout}
        return mlp(x, *weights, threshold_in, threshold_mid, **layouts, activation=activation)

    return {
        torch.ops.zigpass.linear.default: translate_linear,
        torch.ops.zigpass.gated_mlp.default: translate_mlp,
    }


def _four(weight: Sequence[Any]) -> list[Any]:
    return [*weight, *[None] * (len(_WEIGHT) - len(weight))]


def _opaque(name: str, inputs: Sequence[str], attributes: Sequence[str]) -> Any:
    """An op that the exporter writes as it is; an unregistered schema is all it asks for."""
    import onnxscript
    from onnx.defs import OpSchema

    optional, single = OpSchema.FormalParameterOption.Optional, OpSchema.FormalParameterOption.Single
    schema = OpSchema(
        name,
        TRACED_DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter(each, f"T_{each}", param_option=single if each == "x" else optional)
            for each in inputs
        ],
        outputs=[OpSchema.FormalParameter("y", "T_x")],
        type_constraints=[(f"T_{each}", _TENSOR_TYPES, "") for each in inputs],
        attributes=[OpSchema.Attribute(each, OpSchema.AttrType.STRING, "", required=True) for each in attributes],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(TRACED_DOMAIN, 1), name, schema)
