"""One zigpass node of a loaded model: what its attributes say, its packed weights, and its slower paths."""

from __future__ import annotations

import ctypes
import dataclasses
from array import array
from typing import Final

import torch
from torch import Tensor

from zigpass.onnx.forms import OpName
from zigpass.onnx.nbits import restore_nbits
from zigpass.onnx.weights import pack_again
from zigpass.runtime import Layout, PackedWeight, ZigpassError, pack
from zigpass.runtime.cpu import call as fields
from zigpass.runtime.cpu.activations import ACTIVATION_CODES
from zigpass.runtime.cpu.bound import bind
from zigpass.runtime.cpu.floats import FLOAT32
from zigpass.runtime.cpu.parallel import team
from zigpass.runtime.cpu.variants import current_variant

from . import compute
from .abi import (
    GET_DIMENSIONS,
    GET_DIMENSIONS_COUNT,
    GET_ELEMENT_COUNT,
    GET_INPUT,
    GET_OUTPUT,
    GET_TENSOR_DATA,
    GET_TENSOR_TYPE_AND_SHAPE,
    RELEASE_TENSOR_TYPE_AND_SHAPE,
    Api,
)
from .element_types import float_view, read_tensor

_SLOTS: Final = {
    compute.GET_INPUT: GET_INPUT,
    compute.GET_OUTPUT: GET_OUTPUT,
    compute.GET_DATA: GET_TENSOR_DATA,
    compute.GET_TYPE_AND_SHAPE: GET_TENSOR_TYPE_AND_SHAPE,
    compute.RELEASE_TYPE_AND_SHAPE: RELEASE_TENSOR_TYPE_AND_SHAPE,
    compute.GET_DIMENSIONS_COUNT: GET_DIMENSIONS_COUNT,
    compute.GET_DIMENSIONS: GET_DIMENSIONS,
    compute.GET_ELEMENT_COUNT: GET_ELEMENT_COUNT,
}


@dataclasses.dataclass(frozen=True)
class NodeAttributes:
    """What a node says about its weights.

    Attributes:
        layouts: of each weight, in the order of `OpName.weights`.
    """

    op: OpName
    layouts: tuple[Layout, ...]

    @staticmethod
    def read(op: OpName, api: Api, info: int) -> NodeAttributes:
        """
        Raises:
            ZigpassError: an attribute is missing or no layout, or the weights do not fit together.
        """
        try:
            layouts = tuple(Layout.parse(api.attribute_string(info, f"{weight}layout")) for weight in op.weights)
        except KeyError as error:
            raise ZigpassError(
                f"a node {op} has no attribute {error}; was the file made by another zigpass?"
            ) from error
        if op.activation is not None:
            gate, up, down = layouts
            if (gate.n, gate.k) != (up.n, up.k) or down.k != up.n:
                specs = ", ".join(layout.spec for layout in layouts)
                raise ZigpassError(f"the weights of a node {op} do not fit together: {specs}")
        return NodeAttributes(op, layouts)


class Node:
    """The state of one node in one session.

    Args:
        identity: what callbacks get to find it by.
        callbacks: addresses of `PREPARE`, `DENSE` and `FAILED`.
    """

    def __init__(self, attributes: NodeAttributes, api: Api, identity: int, callbacks: tuple[int, int, int]) -> None:
        self.attributes = attributes
        self.api = api
        first, last = attributes.layouts[0], attributes.layouts[-1]
        self._state = (ctypes.c_int64 * compute.FIELDS)()
        self._packed: list[PackedWeight] = []
        self._call = array("q")
        state = self._state
        state[compute.ID] = identity
        state[compute.PREPARE], state[compute.DENSE], state[compute.FAILED] = callbacks
        state[compute.IS_MLP] = attributes.op.activation is not None
        state[compute.NUM_INPUTS], state[compute.NUM_INPUTS + 1] = first.k, last.k
        state[compute.NUM_OUTPUTS] = last.n
        for field, slot in _SLOTS.items():
            state[field] = api.slots[slot]

    @property
    def address(self) -> int:
        """What onnxruntime keeps as the kernel."""
        return ctypes.addressof(self._state)

    def prepare(self, context: int) -> None:
        """Pack the weights from the inputs of a node that runs, and let `compute` run it from now on.

        Raises:
            ZigpassError: the inputs do not fit the attributes.
        """
        op, state = self.attributes.op, self._state
        inputs = {name: index for index, name in enumerate(op.inputs)}
        self._packed = []
        for prefix, layout in zip(op.weights, self.attributes.layouts, strict=True):
            parts = {part: read_tensor(*self.api.input(context, inputs[f"{prefix}{part}"])) for part in op.form.parts}
            self._packed.append(self._pack(layout, parts))
        order = self._packed if op.activation is None else [self._packed[2], self._packed[1], self._packed[0]]
        variant = current_variant()
        bound = bind(
            [tensor for packed in order for tensor in packed.tensors],
            None,
            tuple(packed.layout.spec for packed in order),
        )
        call = self._call = bound.new_call()
        call[fields.X_DTYPE] = FLOAT32
        call[fields.DIGITS] = variant.digits()
        call[fields.TEAM], call[fields.THREADS] = team(bound.num_codes)
        if op.activation is not None:
            call[fields.ACTIVATION] = ACTIVATION_CODES[op.activation.torch_name]
        state[compute.KERNEL] = (variant.project if op.activation is None else variant.mlp).address
        state[compute.MOST_ROWS] = variant.most_rows
        state[compute.CALL], state[compute.CALL_FIELDS] = call.buffer_info()
        state[compute.READY] = 1

    def _pack(self, layout: Layout, parts: dict[str, Tensor]) -> PackedWeight:
        form = self.attributes.op.form
        return pack(restore_nbits(layout, parts)) if form.is_nbits else pack_again(form, layout, parts)

    def run_dense(self, x: int, rows: int, y: int) -> None:
        """Many rows, by the torch ops: y float32 [rows, N] from x float32 [rows, K], both addresses."""
        op, (first, last) = self.attributes.op, (self.attributes.layouts[0], self.attributes.layouts[-1])
        tensors = [list(packed.tensors) for packed in self._packed]
        specs = [packed.layout.spec for packed in self._packed]
        with torch.inference_mode():
            values = float_view(x, rows, first.k)
            if op.activation is None:
                result = torch.ops.zigpass.linear.default(values, tensors[0], None, None, specs[0])
            else:
                result = torch.ops.zigpass.gated_mlp.default(
                    values, *tensors, None, None, None, None, None, *specs, op.activation.torch_name
                )
            float_view(y, rows, last.n).copy_(result)

    def failure(self, code: int) -> str:
        """What a code of `compute` means for this node."""
        op, first = self.attributes.op, self.attributes.layouts[0]
        if code == compute.WRONG_SHAPE:
            return f"{op}: X must have 1 to 8 dimensions, the last of {first.k} entries ({first.spec})"
        if code == compute.WRONG_THRESHOLD:
            return f"{op}: a threshold has 1 entry or as many as the input it belongs to ({first.spec})"
        return f"{op}: the kernel ran out of memory"
