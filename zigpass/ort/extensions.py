"""Without a C compiler: ops through onnxruntime-extensions, which puts them in its own domain.

The functions of a model are then pointed at those ops, in a copy of the graph that is opened instead of the file.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any, Final

from zigpass.onnx.forms import DOMAIN, all_op_names

from .custom_ops import OpTable

_DOMAIN: Final = "ai.onnx.contrib"
_PREFIX: Final = "Zigpass"


def has_extensions() -> bool:
    return importlib.util.find_spec("onnxruntime_extensions") is not None


@functools.cache
def extensions_library() -> str:
    """The library of onnxruntime-extensions, with the zigpass ops added."""
    import onnxruntime_extensions

    path: str = onnxruntime_extensions.get_library_path()
    add = ctypes.CDLL(path).AddExternalCustomOp
    add.argtypes = [ctypes.c_void_p]
    table = OpTable(_PREFIX)
    for pointer in table.pointers:
        add(pointer)
    return path


def redirected(path: Path) -> bytes:
    """A model, without its external tensors, whose zigpass functions call the ops of `extensions_library`."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    names = {str(name) for name in all_op_names()}
    for function in model.functions:
        if function.domain == DOMAIN and function.name in names:
            _redirect(function)
    if all(each.domain != _DOMAIN for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return bytes(model.SerializeToString())


def _redirect(function: Any) -> None:
    """Let the body be one call; the casts give onnxruntime the types it does not infer inside of a function."""
    from onnx import AttributeProto, helper

    first, *weights = function.input
    nodes = [helper.make_node("Identity", [name], [f"{name}_same"]) for name in weights]
    inner = helper.make_node(
        f"{_PREFIX}{function.name}", [first, *(f"{name}_same" for name in weights)], ["computed"], domain=_DOMAIN
    )
    for name in function.attribute:
        kind = AttributeProto.STRING if name.endswith("layout") else AttributeProto.INT
        inner.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=kind))
    nodes += [inner, helper.make_node("CastLike", ["computed", first], list(function.output))]
    del function.node[:]
    function.node.extend(nodes)
    function.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
