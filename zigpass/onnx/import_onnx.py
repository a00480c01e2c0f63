"""`import_onnx`: an ONNX model of MatMulNBits nodes with zigpass nodes in the place of its MLPs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

import numpy as np

from zigpass.progress import counting
from zigpass.runtime import ZigpassError
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.layout import LAYOUT_VERSION
from zigpass.thresholds import Thresholds

from .bodies import make_function
from .files import check_target, save_model, staged, tensor_bytes
from .forms import DOMAIN, VERSION
from .require import require_onnx

logger = logging.getLogger("zigpass.onnx")

_LEAST_OPSET: Final = 15
"""`Shape` has a start since then."""


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was found and written.

    Attributes:
        files: bytes of each file, by path.
        opset: of the default domain.
        ops: nodes of domain zigpass, by op.
        mlps: their names.
        num_matmuls: MatMulNBits nodes that the model had.
        refused: MLPs that stayed as they were, with the reason.
    """

    files: dict[Path, int]
    opset: int
    ops: dict[str, int]
    mlps: list[str]
    num_matmuls: int
    refused: dict[str, str]

    def __str__(self) -> str:
        nodes = ", ".join(f"{count} {name}" for name, count in sorted(self.ops.items()))
        lines = [f"{len(self.mlps)} MLPs, {2 * len(self.mlps)} sites, of {self.num_matmuls} MatMulNBits nodes"]
        lines.append(f"opset {self.opset}, zigpass nodes: {nodes}")
        lines += [f"left as it is: {name}: {reason}" for name, reason in self.refused.items()]
        lines += [f"{path}: {size / 1e6:.2f} MB" for path, size in self.files.items()]
        return "\n".join(lines)


def import_onnx(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    thresholds: Thresholds | str | os.PathLike[str] | float = 0.0,
    progress: bool = True,
) -> ImportReport:
    """Rewrite the gated MLPs of an ONNX model to zigpass nodes and write it to another file.

    The model is one whose linears are com.microsoft's MatMulNBits, as onnxruntime's quantizer and onnxruntime-genai
    write them; SwiGLU, GeGLU and ReGLU in the spellings of both. Weights stay as they are. With thresholds of 0 the
    output is the same bit for bit.

    Args:
        source: the model.
        path: the file to write, ends with `.onnx`; another one than the source.
        thresholds: one number for all; or what `calibrate` gave for the same model in torch, or the path of its file:
            sites are found by the name of their layer ("layers.3.mlp").
        progress: show a progress bar.

    Raises:
        ZigpassError: the source is missing or no ONNX file, has MatMulNBits attributes that are not known here (all are
            named), an opset below 15 or no MLP that can be rewritten; a threshold is missing or negative; the file
            cannot be written, in which case nothing is left under its name.
        ImportError: onnx or onnxscript is missing (`pip install 'zigpass[onnx]'`).
    """
    import zigpass

    require_onnx()
    from .match_nbits import Replacements, check_attributes, make_rules, matmuls

    source, path = Path(source), Path(path)
    model = _load(source)
    if path.exists() and path.samefile(source):
        raise ZigpassError(f"{path}: would be written over the model it is made from; choose another name")
    opset = model.opset_imports.get("", 0)
    found = matmuls(model)
    raise_collected(
        check_attributes(model), f"{source}: MatMulNBits attributes that change the meaning in a way not known here:"
    )
    if not found:
        raise ZigpassError(f"{source}: has no MatMulNBits nodes; export the model from torch with zigpass.export_onnx")
    if opset < _LEAST_OPSET:
        raise ZigpassError(f"{source}: opset {opset}; the function bodies need {_LEAST_OPSET} or more")
    check_target(path, tensor_bytes(model))
    done = Replacements()
    make_rules(_lookup(thresholds), done).apply_to_model(model)
    if not done.ops:
        reasons = [f"{name}: {reason}" for name, reason in done.refused.items()]
        raise_collected(reasons, f"{source}: no MLP can be rewritten:")
        raise ZigpassError(f"{source}: none of its {len(found)} MatMulNBits nodes belong to a gated MLP that is known")
    _finish(model, done, opset, zigpass.__version__)
    with staged(path) as folder:
        with counting(len(model.graph.initializers), "writing", show=progress) as advance:
            save_model(model, folder / path.name, advance)
        files = {path.parent / each.name: each.stat().st_size for each in sorted(folder.iterdir())}
    report = ImportReport(files, opset, done.ops, sorted(done.names.values()), len(found), done.refused)
    logger.info("%s", report)
    return report


def _load(source: Path) -> Any:
    import onnx_ir as ir

    if not source.is_file():
        raise ZigpassError(f"{source}: no such file")
    try:
        return ir.load(source)
    except Exception as error:  # protobuf and its readers have many ways to fail
        raise ZigpassError(f"{source}: damaged or not an ONNX file ({type(error).__name__}: {error})") from error


def _lookup(thresholds: Thresholds | str | os.PathLike[str] | float) -> Any:
    """A function from the name of an MLP to its two thresholds.

    Raises:
        ZigpassError: a negative number, or, when called, an MLP without thresholds.
    """
    if isinstance(thresholds, (int, float)):
        if not 0 <= thresholds < float("inf"):
            raise ZigpassError(f"a threshold is finite and not negative, got {thresholds}")
        value = np.array([thresholds], np.float32)
        return lambda name: (value, value)
    given = thresholds if isinstance(thresholds, Thresholds) else Thresholds.load(thresholds)
    by_layer = {_layer(name): site.threshold.numpy() for name, site in given.sites.items()}

    def find(name: str) -> tuple[np.ndarray, np.ndarray]:
        keys = [_layer(f"{name}.{site}") for site in ("mlp_in", "mlp_mid")]
        missing = [key for key in keys if key not in by_layer]
        raise_collected(missing, f"the thresholds, made for {given.model_id!r}, have no sites for:")
        return by_layer[keys[0]], by_layer[keys[1]]

    return find


def _layer(name: str) -> str:
    """The part of a site's name from its layer on: wrappers put different things before it."""
    place = name.find("layers.")
    return name[place:] if place >= 0 else name


def _finish(model: Any, done: Any, opset: int, version: str) -> None:
    """Functions, imports, names and metadata."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for op in done.functions.values():
        function = ir.serde.deserialize_function(make_function(op, opset))
        model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN:
            name = done.names[node.outputs[0].name]
            node.name = f"/{name.replace('.mlp', '/mlp')}/GatedMlp"
            node.metadata_props["zigpass.modules"] = name
    model.ir_version = max(model.ir_version, 10)
    model.metadata_props["zigpass.version"] = version
    model.metadata_props["zigpass.layout_version"] = str(LAYOUT_VERSION)
    model.metadata_props["zigpass.imported"] = json.dumps({"mlps": len(done.names)})
    RemoveUnusedNodesPass()(model)
