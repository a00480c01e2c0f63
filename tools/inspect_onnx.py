"""What an ONNX file holds of zigpass: its nodes of domain "zigpass", and MatMulNBits nodes that could become such."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zigpass.runtime import ZigpassError
from zigpass.runtime.layout import SUPPORTED_BITS
from zigpass.tools.inspect_terminal import print_wide

DOMAIN = "zigpass"
CANDIDATE = ("com.microsoft", "MatMulNBits")


@dataclasses.dataclass(frozen=True)
class OnnxNode:
    """One node that zigpass wrote, or one that it could take.

    Attributes:
        name, op: of the node; the op with its domain.
        shapes: dims of its constant inputs, by input name.
        num_bytes: of these.
        note: for a candidate, why it cannot become a zigpass node; empty where it can.
    """

    name: str
    op: str
    attributes: dict[str, Any]
    shapes: dict[str, list[int]]
    num_bytes: int
    note: str


def show_onnx(console: Console, path: Path, json_file: Path | None) -> None:
    """Print the nodes, or write them as JSON; - prints that."""
    nodes = read_nodes(path)
    document = {"file": path.name, "nodes": [dataclasses.asdict(node) for node in nodes]}
    if str(json_file) == "-":
        print(json.dumps(document))
        return
    print_wide(console, node_table(path.name, nodes))
    for node in nodes:
        if node.note:
            console.print(f"near miss: {node.name}: {node.note}", soft_wrap=True, markup=False)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document) + "\n", encoding="utf-8")
        console.print(f"wrote {json_file}")


def read_nodes(path: Path) -> list[OnnxNode]:
    """The nodes of domain zigpass and the MatMulNBits nodes of a file, in graph order; weights are not read.

    Raises:
        ZigpassError: onnx is not installed, or the file is no ONNX model.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise ZigpassError("reading ONNX files needs onnx: pip install onnx") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ZigpassError(f"{path}: not an ONNX model ({error})") from error
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        _read(onnx, node, constants)
        for node in model.graph.node
        if node.domain == DOMAIN or (node.domain, node.op_type) == CANDIDATE
    ]


def _read(onnx: Any, node: Any, constants: dict[str, Any]) -> OnnxNode:
    attributes = {item.name: _plain(onnx.helper.get_attribute_value(item)) for item in node.attribute}
    held = [constants[name] for name in node.input if name in constants]
    return OnnxNode(
        name=node.name or node.output[0],
        op=f"{node.domain}.{node.op_type}",
        attributes=attributes,
        shapes={tensor.name: list(tensor.dims) for tensor in held},
        num_bytes=sum(_num_bytes(onnx, tensor) for tensor in held),
        note=obstacle(node, attributes, constants) if node.domain != DOMAIN else "",
    )


def obstacle(node: Any, attributes: dict[str, Any], constants: dict[str, Any]) -> str:
    """Why a MatMulNBits node cannot become a zigpass node; empty where it can."""
    bits = attributes.get("bits", 4)
    if bits not in SUPPORTED_BITS:
        return f"{bits} bits; zigpass packs {', '.join(map(str, SUPPORTED_BITS))}"
    if node.input[1] not in constants:
        return f"its weight {node.input[1]} is computed, not a constant of the file"
    if node.input[2] not in constants:
        return f"its scales {node.input[2]} are computed, not a constant of the file"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, (int, float, str)) else [_plain(item) for item in value]


def _num_bytes(onnx: Any, tensor: Any) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def node_table(title: str, nodes: list[OnnxNode]) -> Table:
    """One line per node."""
    own = sum(node.op.startswith(f"{DOMAIN}.") for node in nodes)
    usable = sum(not node.op.startswith(f"{DOMAIN}.") and not node.note for node in nodes)
    total = sum(node.num_bytes for node in nodes)
    table = Table(
        "node", "op", "attributes", "constants", "MB", box=None, pad_edge=False, title_justify="left",
        title=f"{title}: {own} zigpass nodes, {usable} of {len(nodes) - own} MatMulNBits nodes could become one,"
        f" {total / 1e6:.2f} MB of constants",
    )  # fmt: skip
    for node in nodes:
        attributes = ", ".join(f"{name}={value}" for name, value in node.attributes.items())
        shapes = ", ".join("x".join(map(str, dims)) for dims in node.shapes.values())
        table.add_row(node.name, node.op, attributes, shapes, f"{node.num_bytes / 1e6:.3f}")
    return table
