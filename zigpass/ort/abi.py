"""The parts of onnxruntime's C interface that a custom op needs, without its headers.

`OrtApi` is a table of function pointers that only grows; every slot used here is in the part that version 1 had, which
the header marks as fixed. The Python module of onnxruntime and its shared library are two copies, so the table is
always the one that onnxruntime hands over.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

CREATE_STATUS: Final = 0
GET_TENSOR_DATA: Final = 51
GET_DIMENSIONS_COUNT: Final = 61
GET_DIMENSIONS: Final = 62
GET_ELEMENT_COUNT: Final = 64
GET_TENSOR_TYPE_AND_SHAPE: Final = 65
GET_ATTRIBUTE_INT: Final = 86
GET_ATTRIBUTE_STRING: Final = 87
GET_INPUT: Final = 90
GET_OUTPUT: Final = 91
RELEASE_TENSOR_TYPE_AND_SHAPE: Final = 99
GET_TENSOR_ELEMENT_TYPE: Final = 60
_NUM_SLOTS: Final = 100

STRUCT_VERSION: Final = 17
"""Of `OrtCustomOp`: the first with status results and op versions for sure; onnxruntime 1.20 knows up to 20."""
FAIL: Final = 1
FLOAT: Final = 1
ANY_TYPE: Final = 0
MOST_DIMENSIONS: Final = 8

Pointer = ctypes.c_void_p
Size = ctypes.c_size_t
Int = ctypes.c_int


def _function(result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments)


FIELDS: Final[tuple[tuple[str, Any], ...]] = (
    ("CreateKernel", _function(Pointer, Pointer, Pointer, Pointer)),
    ("GetName", _function(Pointer, Pointer)),
    ("GetExecutionProviderType", _function(Pointer, Pointer)),
    ("GetInputType", _function(Int, Pointer, Size)),
    ("GetInputTypeCount", _function(Size, Pointer)),
    ("GetOutputType", _function(Int, Pointer, Size)),
    ("GetOutputTypeCount", _function(Size, Pointer)),
    ("KernelCompute", _function(None, Pointer, Pointer)),
    ("KernelDestroy", _function(None, Pointer)),
    ("GetInputCharacteristic", _function(Int, Pointer, Size)),
    ("GetOutputCharacteristic", _function(Int, Pointer, Size)),
    ("GetInputMemoryType", _function(Int, Pointer, Size)),
    ("GetVariadicInputMinArity", _function(Int, Pointer)),
    ("GetVariadicInputHomogeneity", _function(Int, Pointer)),
    ("GetVariadicOutputMinArity", _function(Int, Pointer)),
    ("GetVariadicOutputHomogeneity", _function(Int, Pointer)),
    ("CreateKernelV2", _function(Pointer, Pointer, Pointer, Pointer, ctypes.POINTER(Pointer))),
    ("KernelComputeV2", _function(Pointer, Pointer, Pointer)),
    ("InferOutputShape", _function(Pointer, Pointer, Pointer)),
    ("GetStartVersion", _function(Int, Pointer)),
    ("GetEndVersion", _function(Int, Pointer)),
    ("GetMayInplace", Pointer),
    ("ReleaseMayInplace", Pointer),
    ("GetAliasMap", Pointer),
    ("ReleaseAliasMap", Pointer),
)
"""Function pointers of `OrtCustomOp`, in order."""


class CustomOp(ctypes.Structure):
    """`OrtCustomOp`."""

    _fields_ = (("version", ctypes.c_uint32), *((name, Pointer) for name, _ in FIELDS))


class Api:
    """An `OrtApi`, for calls from Python."""

    def __init__(self, address: int) -> None:
        self.slots = (ctypes.c_uint64 * _NUM_SLOTS).from_address(address)

    def status(self, message: str) -> int:
        """A new `OrtStatus` that carries an error."""
        create = _function(Pointer, Int, ctypes.c_char_p)(self.slots[CREATE_STATUS])
        return create(FAIL, message.encode()) or 0

    def attribute_int(self, info: int, name: str) -> int:
        """An integer attribute of a node.

        Raises:
            KeyError: it has none of this name.
        """
        value = ctypes.c_int64()
        get = _function(Pointer, Pointer, ctypes.c_char_p, Pointer)(self.slots[GET_ATTRIBUTE_INT])
        if get(info, name.encode(), ctypes.addressof(value)):
            raise KeyError(name)
        return value.value

    def attribute_string(self, info: int, name: str) -> str:
        """A string attribute of a node.

        Raises:
            KeyError: it has none of this name.
        """
        get = _function(Pointer, Pointer, ctypes.c_char_p, Pointer, Pointer)(self.slots[GET_ATTRIBUTE_STRING])
        size = ctypes.c_size_t(0)
        get(info, name.encode(), None, ctypes.addressof(size))
        buffer = ctypes.create_string_buffer(size.value + 1)
        if get(info, name.encode(), ctypes.addressof(buffer), ctypes.addressof(size)):
            raise KeyError(name)
        return buffer.value.decode()

    def input(self, context: int, index: int) -> tuple[int, int, tuple[int, ...]]:
        """Address, element type and shape of an input of a node that runs."""
        value = self._get(GET_INPUT, context, index)
        info = self._get(GET_TENSOR_TYPE_AND_SHAPE, value)
        kind = ctypes.c_int()
        self._call(GET_TENSOR_ELEMENT_TYPE, info, ctypes.addressof(kind))
        dimensions = (ctypes.c_int64 * self._get(GET_DIMENSIONS_COUNT, info))()
        self._call(GET_DIMENSIONS, info, ctypes.addressof(dimensions), len(dimensions))
        _function(None, Pointer)(self.slots[RELEASE_TENSOR_TYPE_AND_SHAPE])(info)
        return self._get(GET_TENSOR_DATA, value), kind.value, tuple(dimensions)

    def _get(self, slot: int, *arguments: int) -> int:
        """Call a function whose last argument is where it puts its result."""
        result = ctypes.c_size_t()
        self._call(slot, *arguments, ctypes.addressof(result))
        return result.value

    def _call(self, slot: int, *arguments: int) -> None:
        function = _function(Pointer, *(Size,) * len(arguments))(self.slots[slot])
        if function(*arguments):
            raise RuntimeError(f"onnxruntime refused call {slot} of its C interface")
