"""The dense int4 kernels of other libraries that `zigpass bench cpu` measures against, one row of input."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Call = Callable[[int], object]


def group_size(k: int) -> int:
    """Inputs that share a scale: 128, or 64 where 128 does not divide K (torch's kernel insists)."""
    return 128 if k % 128 == 0 else 64


def torch_int4pack(k: int, n: int, copies: int) -> Call:
    """torch's `_weight_int4pack_mm_for_cpu` with bfloat16 activations, the dtype it is written for."""
    weight = torch.randint(0, 16, (n, k), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight, 1)
    del weight
    group = group_size(k)
    scales = torch.rand(k // group, n, 2).bfloat16()
    weights = [(packed.clone(), scales.clone()) for _ in range(copies)]
    x = torch.randn(1, k).bfloat16()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda copy: multiply(x, weights[copy][0], group, weights[copy][1])


def torch_int4pack_mlp(k: int, middle: int, copies: int) -> Call:
    """silu(W_gate x) * (W_up x), then W_down, of three int4pack products."""
    gate, up = (torch_int4pack(k, middle, copies) for _ in range(2))
    down_weights = [torch_int4pack(middle, k, 1) for _ in range(copies)]
    silu = torch.nn.functional.silu

    def call(copy: int) -> object:
        silu(gate(copy)).mul_(up(copy))  # type: ignore[arg-type]
        return down_weights[copy](0)

    return call


def has_onnxruntime() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


def onnxruntime_matmul(k: int, n: int, copies: int) -> Call:
    """onnxruntime's MatMulNBits with accuracy_level=4 (int8 activations), one session per copy of the weight."""
    sessions = [_Session([_node("x", "y", "w", k, n)], _initializers("w", k, n), k, n) for _ in range(copies)]
    return lambda copy: sessions[copy].run()


def onnxruntime_mlp(k: int, middle: int, copies: int) -> Call:
    """A whole SwiGLU MLP of MatMulNBits nodes."""
    from onnx import helper

    nodes = [
        _node("x", "g", "gate", k, middle),
        _node("x", "u", "up", k, middle),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Mul", ["g", "s"], ["a"]),
        helper.make_node("Mul", ["a", "u"], ["m"]),
        _node("m", "y", "down", middle, k),
    ]
    sessions = []
    for _ in range(copies):
        tensors = _initializers("gate", k, middle) + _initializers("up", k, middle) + _initializers("down", middle, k)
        sessions.append(_Session(nodes, tensors, k, k))
    return lambda copy: sessions[copy].run()


class _Session:
    """A graph from x [1, k] to y [1, n], with input and output bound once."""

    def __init__(self, nodes: list[Any], initializers: list[Any], k: int, n: int) -> None:
        import onnxruntime
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            nodes,
            "peer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, n])],
            initializers,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.x = np.random.default_rng(0).standard_normal((1, k)).astype(np.float32)
        self.y = np.empty((1, n), np.float32)
        self.binding = self.session.io_binding()
        self.binding.bind_input("x", "cpu", 0, np.float32, self.x.shape, self.x.ctypes.data)
        self.binding.bind_output("y", "cpu", 0, np.float32, self.y.shape, self.y.ctypes.data)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def _node(x: str, y: str, name: str, k: int, n: int) -> Any:
    from onnx import helper

    return helper.make_node(
        "MatMulNBits", [x, f"{name}_codes", f"{name}_scale", f"{name}_zero"], [y], domain="com.microsoft",
        K=k, N=n, bits=4, block_size=group_size(k), accuracy_level=4,
    )  # fmt: skip


def _initializers(name: str, k: int, n: int) -> list[Any]:
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    group = group_size(k)
    groups = -(-k // group)
    return [
        numpy_helper.from_array(rng.integers(0, 256, (n, groups, group // 2), np.uint8), f"{name}_codes"),
        numpy_helper.from_array(rng.random(n * groups, np.float32) * 0.01, f"{name}_scale"),
        numpy_helper.from_array(rng.integers(0, 256, n * -(-groups // 2), np.uint8), f"{name}_zero"),
    ]
