"""Names for people, and nothing in the file that belongs to the machine it was made on."""

from __future__ import annotations

import re
from typing import Any, Final

_KEPT_METADATA: Final = ("zigpass.", "pkg.torch.onnx.original_node_name")
"""torch's stack traces hold local paths, and its other notes are several times the size of the graph."""


def rename_interface(model: Any, inputs: list[str], outputs: list[str]) -> None:
    """Name the inputs and outputs of a graph."""
    # In two steps, because a new name may be the old name of another value.
    for values, names in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for index, value in enumerate(values):
            value.name = f"{value.name}.{index}.renamed"
        for value, name in zip(values, names, strict=True):
            value.name = name


def rename_dimensions(model: Any, dimensions: dict[str, list[str]]) -> None:
    """Give the symbols of torch names.

    Args:
        dimensions: names of the varying dimensions of each input, in order, by the name of the input.
    """
    symbols: dict[str, str] = {}
    for value in model.graph.inputs:
        varying = [size.value for size in value.shape if not isinstance(size, int)]
        for symbol, name in zip(varying, dimensions.get(value.name, ()), strict=False):
            symbols.setdefault(symbol, name)
    if symbols:
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, symbols))})\b")
        for value in _all_values(model.graph):
            if value.shape is not None:
                value.shape = _renamed(value.shape, pattern, symbols)


def strip_prefix(model: Any, prefix: str) -> None:
    """Take what a wrapper put before the names of a module's tensors off."""
    for name, value in list(model.graph.initializers.items()):
        if prefix and name.startswith(prefix):
            model.graph.initializers.pop(name)
            value.name = name.removeprefix(prefix)
            model.graph.initializers[value.name] = value


def strip_metadata(model: Any) -> None:
    """Remove what torch notes on every node and value."""
    holders = [model, model.graph, *_all_values(model.graph), *model.graph.all_nodes()]
    for holder in holders:
        for key in [key for key in holder.metadata_props if not key.startswith(_KEPT_METADATA)]:
            del holder.metadata_props[key]


def _all_values(graph: Any) -> list[Any]:
    values = [*graph.inputs, *graph.initializers.values()]
    return [*values, *(output for node in graph.all_nodes() for output in node.outputs)]


def _renamed(shape: Any, pattern: re.Pattern[str], symbols: dict[str, str]) -> Any:
    import onnx_ir as ir

    def rename(size: Any) -> Any:
        if isinstance(size, int) or size.value is None:
            return size
        return pattern.sub(lambda match: symbols[match[0]], size.value)

    return ir.Shape([rename(size) for size in shape])
