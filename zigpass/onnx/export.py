"""`export_onnx`: a packed model as an ONNX file that runs anywhere."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import nn

from zigpass import passes
from zigpass.backend import ZigpassWarning
from zigpass.export_program import export_program
from zigpass.linear import find_linears
from zigpass.progress import counting, working
from zigpass.runtime import ZigpassError
from zigpass.runtime.layout import LAYOUT_VERSION
from zigpass.sites import find_sites
from zigpass.thresholds import Thresholds

from .causal_lm import CausalLM, is_causal_lm, wrap_causal_lm
from .check import check_exportable
from .files import check_target, save_model, staged
from .genai import write_genai
from .lower import METADATA, Lowering
from .require import require_onnx
from .tidy import rename_dimensions, rename_interface, strip_metadata, strip_prefix
from .translate import LEAST_OPSET, check_opset, translate

logger = logging.getLogger("zigpass.onnx")

_SKIPPED: Final = frozenset(passes.OPTIONAL_PASSES) - {"fuse_gated_mlp"}
"""In an ONNX graph the runtime finds what linears share, and attention is translated by torch's exporter."""
_PREFIX: Final = "model."
"""What `CausalLM` puts before the names of the model's tensors."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        files: bytes of each file, by path.
        opset: of the default domain.
        ops: nodes of domain zigpass, by op; empty when functions were inlined.
        num_sites: activations with a threshold.
        num_linears: packed linears.
        packed_bytes: of their codes and scales in memory.
        slow: linears that stock runtimes run slowly, with the reason.
    """

    files: dict[Path, int]
    opset: int
    ops: dict[str, int]
    num_sites: int
    num_linears: int
    packed_bytes: int
    slow: dict[str, str]

    def __str__(self) -> str:
        nodes = ", ".join(f"{count} {name}" for name, count in sorted(self.ops.items())) or "inlined"
        lines = [f"{self.num_linears} packed linears ({self.packed_bytes / 1e6:.1f} MB), {self.num_sites} sites"]
        lines.append(f"opset {self.opset}, zigpass nodes: {nodes}")
        lines += [f"{path}: {size / 1e6:.2f} MB" for path, size in self.files.items()]
        return "\n".join(lines)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    thresholds: Thresholds | str | os.PathLike[str] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    tokenizer: Any = None,
    opset: int = LEAST_OPSET,
    inline_functions: bool = False,
    progress: bool = True,
) -> ExportReport:
    """Write a packed model as ONNX: one graph, sparse for one row and dense for more.

    The linears and MLPs are nodes of domain `zigpass` with bodies in standard ops, so stock onnxruntime (1.20 and
    newer) and every other runtime with functions runs the file, dense but with the inactive entries masked;
    `zigpass.ort.register` makes onnxruntime on the CPU skip their weights. 4-bit weights stay 4-bit in the file. A
    large model's tensors go to `<path>.data` beside it, and a language model's `genai_config.json` too. Files appear
    under their names when all of them are complete.

    Args:
        model: with packed linears. A causal language model of transformers is written with its key-value cache, under
            the names that onnxruntime-genai knows; anything else is written as its example inputs call it.
        path: ends with `.onnx`.
        thresholds: what `calibrate` gave, or the path of its file; None for those that the model has now.
        example_inputs, example_kwargs: what to trace with; needed when the model is no causal language model.
        dynamic_shapes: as `torch.export.export` takes them; None for the sizes of the example inputs.
        tokenizer: of a language model, to write its files beside it.
        opset: of standard ops, 21 to 25. onnxruntime up to 1.22 loads 21 only.
        inline_functions: write the bodies in the place of the nodes, for runtimes without functions (OpenVINO). Such a
            file cannot be made to skip weights.
        progress: show a progress bar.

    Returns:
        What was written.

    Raises:
        ZigpassError: the opset is not supported; the path cannot be written or the disk has no room, in which case
            nothing is left under the final names; the model has no packed linears, cannot be traced or translated, or
            the thresholds do not fit it.
        ImportError: onnx or onnxscript is missing (`pip install 'zigpass[onnx]'`).
    """
    path = Path(path)
    check_opset(opset)
    require_onnx()
    model = getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
    check_exportable(model)
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        thresholds = Thresholds.load(thresholds)
    is_module = example_inputs is not None or example_kwargs is not None
    if not is_module and not is_causal_lm(model):
        raise ZigpassError(
            f"{type(model).__name__} is not a causal language model of transformers; pass example_inputs"
        )
    check_target(path, sum(tensor.nbytes for tensor in model.state_dict().values()))
    with _thresholds_of(model, thresholds):
        if is_module:
            lm = None
            graph, lowering = _build(model, example_inputs or (), example_kwargs, dynamic_shapes, opset, "", progress)
        else:
            lm = wrap_causal_lm(model)
            graph, lowering = _build(lm, lm.example_inputs(), None, lm.dynamic_shapes(), opset, _PREFIX, progress)
            rename_interface(graph, lm.input_names, lm.output_names)
            rename_dimensions(graph, lm.dimension_names())
        _describe(graph, thresholds)
        _warn_slow(lowering)
        if inline_functions:
            _inline(graph)
        files = _write(graph, path, lm, tokenizer, progress)
    report = ExportReport(
        files=files,
        opset=opset,
        ops={} if inline_functions else lowering.ops,
        num_sites=len(find_sites(model)),
        num_linears=sum(1 for _ in find_linears(model)),
        packed_bytes=sum(linear.packed.num_bytes for _, linear in find_linears(model)),
        slow=lowering.slow,
    )
    logger.info("%s", report)
    return report


@contextmanager
def _thresholds_of(model: nn.Module, thresholds: Thresholds | None) -> Iterator[None]:
    """Let a model have other thresholds while the context is open."""
    if thresholds is None:
        yield
        return
    kept = {name: (site.threshold.clone(), site.target_sparsity) for name, site in find_sites(model).items()}
    thresholds.apply(model)
    try:
        yield
    finally:
        for name, site in find_sites(model).items():
            site.set_threshold(*kept[name])


def _build(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    opset: int,
    prefix: str,
    progress: bool,
) -> tuple[Any, Lowering]:
    with working("tracing the model", show=progress):
        program = export_program(module, args, kwargs, dynamic_shapes=dynamic_shapes, skip=_SKIPPED)
    with working("translating it to ONNX", show=progress):
        graph = translate(program, opset)
    strip_prefix(graph, prefix)
    lowering = Lowering(graph, module.get_submodule(prefix.rstrip(".")), opset)
    lowering.run()
    strip_metadata(graph)
    return graph, lowering


def _describe(graph: Any, thresholds: Thresholds | None) -> None:
    """What made the file, and where its thresholds come from."""
    import zigpass

    origin: dict[str, Any] = {"origin": "those of the model when it was exported"}
    if thresholds is not None:
        fields = ("target_sparsity", "rule", "allocation", "fingerprint", "text_hash", "num_tokens")
        origin = {"origin": "zigpass.calibrate", **{name: getattr(thresholds, name) for name in fields}}
    graph.producer_name, graph.producer_version = "zigpass", zigpass.__version__
    graph.metadata_props[f"{METADATA}version"] = zigpass.__version__
    graph.metadata_props[f"{METADATA}layout_version"] = str(LAYOUT_VERSION)
    graph.metadata_props[f"{METADATA}thresholds"] = json.dumps(origin)


def _warn_slow(lowering: Lowering) -> None:
    reasons = Counter(lowering.slow.values())
    for reason, count in reasons.items():
        remedy = "quantize with another group_size"
        if "scale_axis" in reason:
            remedy = 'quantize with scale_axis="in"'
        warnings.warn(
            f"{count} linears run slowly in stock onnxruntime: {reason}; {remedy}, or run the file with"
            " zigpass.ort.register",
            ZigpassWarning,
            stacklevel=3,
        )


def _inline(graph: Any) -> None:
    from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass

    InlinePass()(graph)
    RemoveUnusedOpsetsPass()(graph)


def _write(graph: Any, path: Path, lm: CausalLM | None, tokenizer: Any, progress: bool) -> dict[Path, int]:
    count = sum(1 for value in graph.graph.initializers.values())
    with staged(path) as folder:
        with counting(count, "writing", show=progress) as advance:
            save_model(graph, folder / path.name, advance)
        if lm is not None:
            write_genai(lm, tokenizer, folder, path.name)
        return {path.parent / each.name: each.stat().st_size for each in sorted(folder.iterdir())}
