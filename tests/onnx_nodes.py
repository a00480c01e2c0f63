"""ONNX models of a single zigpass node, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from zigpass.onnx.bodies import make_function
from zigpass.onnx.forms import DOMAIN, OpName
from zigpass.onnx.weights import StoredWeight, is_nibbles
from zigpass.runtime import QuantizedWeight, pack


def node_model(op: OpName, weights: list[QuantizedWeight], thresholds: list[torch.Tensor], opset: int = 21) -> Any:
    """A model from X [rows, K] to Y [rows, N]."""
    initializers, attributes = [], {}
    for name, threshold in zip(op.thresholds, thresholds, strict=True):
        initializers.append(onnx.numpy_helper.from_array(threshold.numpy(), name))
    for prefix, weight in zip(op.weights, weights, strict=True):
        stored = StoredWeight.of(pack(weight))
        assert stored.form == op.form
        initializers += [initializer(f"{prefix}{part}", stored, part) for part in op.form.parts]
        attributes[f"{prefix}layout"] = stored.layout.spec
        if op.form.zero == "Column":
            attributes[f"{prefix}num_rows"] = stored.layout.n
        else:
            attributes[f"{prefix}group_size"] = stored.layout.group_size
    node = helper.make_node(str(op), list(op.inputs), ["Y"], domain=DOMAIN, **attributes)
    k, n = weights[0].codes.shape[1], weights[-1].codes.shape[0]
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["rows", k])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["rows", n])],
        initializers,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[make_function(op, opset)], ir_version=10)


def initializer(name: str, stored: StoredWeight, part: str) -> Any:
    if is_nibbles(stored.form, part):
        return helper.make_tensor(
            name, TensorProto.UINT4, stored.shape(part), stored.read(part).numpy().tobytes(), True
        )
    return onnx.numpy_helper.from_array(stored.read(part).numpy(), name)


def session(model: Any, accuracy_level: int = 0, **settings: Any) -> Any:
    """A CPU session of stock onnxruntime; accuracy level 0 keeps activations in float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    for name, value in settings.items():
        setattr(options, name, value)
    source = model if isinstance(model, (bytes, str)) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(running: Any, x: torch.Tensor) -> torch.Tensor:
    (y,) = running.run(None, {"X": x.numpy().astype(np.float32)})
    return torch.from_numpy(y)


def run_module(running: Any, x: torch.Tensor) -> torch.Tensor:
    """The one output for the one input."""
    (y,) = running.run(None, {running.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(y)
