"""One cell of the support table: a tiny model in one representation, packed, compiled and compared."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.backend import ZigpassWarning
from zigpass.cache_argument import cache_arguments
from zigpass.explain import explain
from zigpass.explain_report import Report
from zigpass.float_linears import is_float_linear, weight_of
from zigpass.formats.gguf_architectures import ARCHITECTURES
from zigpass.linear import ZigzagLinear, find_linears
from zigpass.load_gguf import load_gguf
from zigpass.prepare import prepare, survey
from zigpass.rewrite_graph import describe_kinds
from zigpass.runtime import ZigpassError

from .exported import quantize_exported
from .representations import REPRESENTATIONS, Weights
from .tiny_models import decode_inputs, tiny_model

PROMPT: Final = 4
EXPORTED: Final = {"PT2E groups": "affine", "PT2E rows": "channel"}
"""Column -> which dequantize call the graph of the model has."""
GGUF_TYPES: Final = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
COLUMNS: Final = (*REPRESENTATIONS, *EXPORTED, *(f"GGUF {name}" for name in GGUF_TYPES))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model in one representation.

    Attributes:
        matched: sparse ops of a decoding step.
        num_matched: linears that they cover.
        expected: linears that are quantized, all of which should be matched.
        difference: largest difference of a logit to the reference, over the largest logit; None with nothing packed.
        reasons: why linears are not matched: sentence -> their names.
    """

    model: str
    representation: str
    matched: str
    num_matched: int
    expected: int
    difference: float | None
    reasons: dict[str, list[str]]

    @staticmethod
    def nothing(model: str, representation: str, expected: int, reasons: dict[str, list[str]]) -> Cell:
        """A cell where nothing is packed."""
        return Cell(model, representation, "nothing", 0, expected, None, reasons)


def measure(family: str, representation: str) -> Cell:
    """Quantize, pack, compile and compare one model.

    Raises:
        ZigpassError: a linear is not matched and `explain` does not say why.
    """
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZigpassWarning)  # where nothing is packed; the cell says so
        if representation in EXPORTED:
            return _measure_exported(family, representation)
        if representation in REPRESENTATIONS:
            return _measure_modules(family, representation)
        return _measure_gguf(family, representation)


def _measure_modules(family: str, representation: str) -> Cell:
    model = tiny_model(family)
    reference = copy.deepcopy(model)
    weights = REPRESENTATIONS[representation].quantize(model)
    if not weights:
        why = (
            "the library takes nn.Linear, and this model has transformers' Conv1D instead; zigpass.quantize_ takes both"
        )
        return Cell.nothing(family, representation, 0, {why: [family]})
    found = [item for item in survey(model) if item.recognized]
    refused = [(item.reason, item.name) for item in found if item.reason is not None]
    if refused:
        _check_prepare_says(model, refused)
        return Cell.nothing(family, representation, len(weights), _grouped(refused))
    if found:
        prepare(model, progress=False)
    _set_weights(reference, weights)
    return _compare(family, representation, model, reference, len(weights))


def _check_prepare_says(model: nn.Module, refused: list[tuple[str, str]]) -> None:
    """The refusals of `survey` are those that a user reads, and nothing is packed."""
    message = ""
    try:
        prepare(model, progress=False)
    except ZigpassError as error:
        message = str(error)
    silent = [name for reason, name in refused if f"{name}: " not in message or reason not in message]
    if silent or any(find_linears(model)):
        raise ZigpassError(f"prepare says nothing about {', '.join(silent)}")


def _compare(family: str, representation: str, model: Any, reference: Any, expected: int) -> Cell:
    """Prefill and one decoding step, compiled and as the reference computes them."""
    from transformers import StaticCache

    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"inner": "eager"})
    logits = []
    for prefill, decode in ((model, compiled), (reference, reference)):
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.inference_mode():
            prefill(**decode_inputs(family, 0, PROMPT), **cache_arguments(prefill, cache))
            next_token = decode_inputs(family, PROMPT, PROMPT + 1)
            logits.append(decode(**next_token, **cache_arguments(decode, cache)).logits)
    report = explain(model, **decode_inputs(family, PROMPT, PROMPT + 1), **cache_arguments(model, cache))
    return _cell(family, representation, model, report, logits, expected)


def _measure_exported(family: str, representation: str) -> Cell:
    inputs = decode_inputs(family, 0, 1)
    graph = quantize_exported(tiny_model(family), inputs, EXPORTED[representation])
    found = [item for item in survey(graph) if item.recognized]
    if not found:
        why = "PT2E quantizes aten.linear, and the graph of this model has none but the output head"
        return Cell.nothing(family, representation, 0, {why: [family]})
    tokens = inputs["input_ids"]
    with torch.inference_mode():
        expected = graph(tokens)
        prepare(graph, progress=False)
        compiled = torch.compile(graph, backend="zigpass", fullgraph=True, options={"inner": "eager"})
        logits = [compiled(tokens), expected]
    return _cell(family, representation, graph, explain(graph, tokens), logits, len(found))


def _measure_gguf(family: str, representation: str) -> Cell:
    architecture = family.lower()
    if architecture not in ARCHITECTURES:
        why = f"GGUF files are read of the architectures {', '.join(ARCHITECTURES)}"
        return Cell.nothing(family, representation, 0, {why: [family]})
    from gguf import GGMLQuantizationType
    from transformers import AutoModelForCausalLM

    from .gguf_files import write_llama

    name = representation.removeprefix("GGUF ")
    kind = GGMLQuantizationType[name]
    sizes = {"hidden": 256, "middle": 512} if name.endswith("_K") else {}
    if architecture == "qwen3":  # transformers does not read the head size of such a file and takes 128
        sizes["head"] = 128
    with TemporaryDirectory() as folder:
        write_llama(Path(folder) / "tiny.gguf", {"blk": kind}, architecture=architecture, **sizes)
        model = load_gguf(Path(folder) / "tiny.gguf", progress=False)
        # transformers dequantizes the whole file to float32.
        reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype=torch.float32)
    expected = sum(is_float_linear(module) for module in reference.modules())
    return _compare(family, representation, model, reference, expected)


def _cell(
    family: str, representation: str, model: nn.Module, report: Report, logits: list[Tensor], expected: int
) -> Cell:
    covered = {module for match in report.matches for module in match.modules}
    unmatched = [(row.note, row.name) for row in report.rows if row.name not in covered]
    silent = [name for note, name in unmatched if not note]
    if silent:
        raise ZigpassError(f"{family}, {representation}: explain says nothing about {', '.join(silent)}")
    packed = {name for name, _ in find_linears(model)}
    in_one = sum(name.endswith(".up") for name in packed)  # a gate_up_proj is two packed linears
    difference = float((logits[0] - logits[1]).abs().max() / logits[1].abs().max()) if packed else None
    return Cell(
        model=family,
        representation=representation,
        matched=describe_kinds(report.kinds),
        num_matched=len(covered & packed) - in_one,
        expected=expected,
        difference=difference,
        reasons=_grouped(unmatched),
    )


def _grouped(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    counts = Counter(reason for reason, _ in pairs)
    return {reason: [name for other, name in pairs if other == reason] for reason in counts}


def _set_weights(model: nn.Module, weights: Weights) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            linear = model.get_submodule(name)
            assert not isinstance(linear, ZigzagLinear)
            weight_of(linear).copy_(weight)
