"""The zigpass ops as `OrtCustomOp`s that live as long as the process."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable
from typing import Any, Final

from zigpass.onnx.forms import OpName, all_op_names
from zigpass.runtime import ZigpassError

from .abi import ANY_TYPE, FIELDS, FLOAT, STRUCT_VERSION, Api, CustomOp, Pointer, _function
from .compute import compute_function
from .nodes import Node, NodeAttributes

_nodes: Final[dict[int, Node]] = {}
_identities = itertools.count(1)
_by_address: Final[dict[int, int]] = {}
"""Address of a node's state -> its identity."""


class OpTable:
    """All ops of the domain.

    Args:
        prefix: put before the name of every op.
    """

    def __init__(self, prefix: str = "") -> None:
        self.names = all_op_names()
        self._texts = [ctypes.create_string_buffer(f"{prefix}{name}".encode()) for name in self.names]
        self.ops = (CustomOp * len(self.names))()
        places = {ctypes.addressof(op): index for index, op in enumerate(self.ops)}
        self._callbacks = self._make_callbacks(places)
        for op in self.ops:
            op.version = STRUCT_VERSION
            for field, address in self._callbacks.items():
                setattr(op, field, address)
        self.pointers = (Pointer * len(self.names))(*places)
        _keep_for_ever(self)

    def _make_callbacks(self, places: dict[int, int]) -> dict[str, int]:
        names, texts = self.names, self._texts

        def create(op: int, api: int, info: int, out: Any) -> int:
            return _guarded(Api(api), lambda: _create(names[places[op]], Api(api), info, out))

        functions: dict[str, Callable[..., Any]] = {
            "GetName": lambda op: ctypes.addressof(texts[places[op]]),
            "GetExecutionProviderType": lambda op: None,
            "GetInputType": lambda op, index: FLOAT if index <= len(names[places[op]].thresholds) else ANY_TYPE,
            "GetInputTypeCount": lambda op: len(names[places[op]].inputs),
            "GetOutputType": lambda op, index: FLOAT,
            "GetOutputTypeCount": lambda op: 1,
            "KernelDestroy": _destroyer(),
            "GetInputCharacteristic": lambda op, index: 0,
            "GetOutputCharacteristic": lambda op, index: 0,
            "GetInputMemoryType": lambda op, index: 0,
            "CreateKernelV2": create,
            "GetStartVersion": lambda op: 1,
            "GetEndVersion": lambda op: 0x7FFFFFFF,
        }
        self._functions = {name: kind(functions[name]) for name, kind in FIELDS if name in functions}
        addresses = {name: ctypes.cast(function, Pointer).value or 0 for name, function in self._functions.items()}
        return {**addresses, "KernelComputeV2": compute_function().address}


def _create(name: OpName, api: Api, info: int, out: Any) -> None:
    identity = next(_identities)
    node = Node(NodeAttributes.read(name, api, info), api, identity, _callback_addresses())
    _nodes[identity] = node
    _by_address[node.address] = identity
    out[0] = node.address


def _destroyer() -> Callable[[int], None]:
    # May run while the interpreter ends and this module's names are gone already: reach for nothing by name.
    def destroy(kernel: int, nodes: Any = _nodes, by_address: Any = _by_address) -> None:
        nodes.pop(by_address.pop(kernel, 0), None)

    return destroy


@functools.cache
def _callback_addresses() -> tuple[int, int, int]:
    """What compiled code calls back: `PREPARE`, `DENSE` and `FAILED`."""

    def prepare(identity: int, context: int) -> int:
        node = _nodes[identity]
        return _guarded(node.api, lambda: node.prepare(context))

    def dense(identity: int, x: int, rows: int, y: int) -> int:
        node = _nodes[identity]
        return _guarded(node.api, lambda: node.run_dense(x, rows, y))

    def failed(identity: int, code: int) -> int:
        node = _nodes[identity]
        return node.api.status(f"zigpass: {node.failure(code)}")

    integer = ctypes.c_int64
    kept = [
        _function(integer, integer, integer)(prepare),
        _function(integer, integer, integer, integer, integer)(dense),
        _function(integer, integer, integer)(failed),
    ]
    for each in kept:
        _keep_for_ever(each)
    first, second, third = (ctypes.cast(each, Pointer).value or 0 for each in kept)
    return first, second, third


def _guarded(api: Api, work: Callable[[], None]) -> int:
    """Run Python code that onnxruntime called; an exception becomes a status, which the user sees as an exception."""
    try:
        work()
    except ZigpassError as error:
        return api.status(f"zigpass: {error}")
    except Exception as error:
        return api.status(f"zigpass: {type(error).__name__}: {error}")
    return 0


def _keep_for_ever(thing: object) -> None:
    """onnxruntime may use it until the process ends, after Python has taken its modules apart."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
