"""What works: models x representations as a Markdown table, from tiny random models of the real classes.

    python -m zigpass.tools.support_table

For each cell a model is quantized, packed, and decodes through the backend at sparsity 0. The reference is the same
model with float linears that hold the dequantized weights of the library that quantized it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Final

import torch
import typer
from torch import Tensor, nn

from zigpass.config import ZigzagConfig
from zigpass.explain import explain
from zigpass.float_linears import weight_of
from zigpass.formats.registry import find_recognizer
from zigpass.gate_up import GateUp
from zigpass.linear import ZigzagLinear, find_linears
from zigpass.prepare import prepare
from zigpass.quantize import quantize_
from zigpass.rewrite_graph import describe_kinds
from zigpass.runtime import ZigpassError

from .tiny_models import FAMILIES, decode_inputs, tiny_model

HEADER: Final = (
    "model",
    "representation",
    "matched in 2 layers",
    "packed linears covered",
    "logit difference",
    "not matched, and why",
)
PROMPT: Final = 4


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model in one representation.

    Attributes:
        matched: sparse ops of a decoding step.
        num_matched, num_packed: packed linears that they cover, and all of them.
        difference: largest difference of a logit to the reference, over the largest logit; None with nothing packed.
        reasons: why something did not match: sentence -> how many linears, and the name of one.
    """

    model: str
    representation: str
    matched: str
    num_matched: int
    num_packed: int
    difference: float | None
    reasons: dict[str, tuple[int, str]]

    def columns(self) -> tuple[str, ...]:
        reasons = "; ".join(
            f"`{name}`{f' and {count - 1} more' if count > 1 else ''}: {reason}"
            for reason, (count, name) in self.reasons.items()
        )
        covered = f"{self.num_matched} of {self.num_packed}"
        difference = "-" if self.difference is None else f"{self.difference:.0e}"
        return self.model, self.representation, self.matched, covered, difference, reasons


def with_quantize(model: nn.Module) -> dict[str, Tensor]:
    """Pack a float model; the weights [N, K] by name that a float model must have to compute the same."""
    quantize_(model, ZigzagConfig(group_size=32), progress=False)
    weights = {name: linear.unpack().dequantize() for name, linear in find_linears(model)}
    for name, module in model.named_modules():
        if isinstance(module, GateUp):
            weights[name] = torch.cat([weights.pop(f"{name}.{half}") for half in ("gate", "up")])
    return weights


def with_torchao(model: nn.Module) -> dict[str, Tensor]:
    """As `with_quantize`, through torchao's 4-bit weights and `prepare`."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization import quantize_ as torchao_quantize_
    from torchao.quantization.granularity import PerGroup

    def takes(module: nn.Module, name: str) -> bool:
        return type(module) is nn.Linear and name.rpartition(".")[2] != "lm_head"

    int4 = torch.int4  # type: ignore[attr-defined]  # the dtype is there, its stub is not
    torchao_quantize_(model, IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(32)), takes)
    weights = {}
    for name, module in model.named_modules():
        recognizer = find_recognizer(module)
        if recognizer is not None:
            weights[name] = recognizer.dequantize(module)
    if weights:
        prepare(model, progress=False)
    return weights


REPRESENTATIONS: Final[dict[str, Callable[[nn.Module], dict[str, Tensor]]]] = {
    "`quantize_`, 4 bits": with_quantize,
    "torchao int4": with_torchao,
}


def measure(family: str, representation: str) -> Cell:
    """Quantize, compile and compare one model."""
    from transformers import StaticCache

    torch._dynamo.reset()
    model = tiny_model(family)
    reference = copy.deepcopy(model)
    _set_weights(reference, REPRESENTATIONS[representation](model))
    compiled = torch.compile(model, backend="zigpass", fullgraph=True, options={"inner": "eager"})
    logits = []
    for call in (compiled, reference):
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.inference_mode():
            call(**decode_inputs(family, 0, PROMPT), past_key_values=cache)
            logits.append(call(**decode_inputs(family, PROMPT, PROMPT + 1), past_key_values=cache).logits)
    report = explain(model, **decode_inputs(family, PROMPT, PROMPT + 1), past_key_values=cache)
    packed = [name for name, _ in find_linears(model)]
    covered = {module for match in report.matches for module in match.modules}
    unmatched = [(row.note, row.name) for row in report.rows if row.name not in covered]
    silent = [name for note, name in unmatched if not note]
    if silent:
        raise ZigpassError(f"{family}, {representation}: explain says nothing about {', '.join(silent)}")
    counts = Counter(note for note, _ in unmatched)
    names = dict(reversed(unmatched))
    return Cell(
        model=family,
        representation=representation,
        matched=describe_kinds(report.kinds),
        num_matched=len(covered & set(packed)),
        num_packed=len(packed),
        difference=float((logits[0] - logits[1]).abs().max() / logits[1].abs().max()) if packed else None,
        reasons={note: (count, names[note]) for note, count in counts.items()},
    )


def _set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            linear = model.get_submodule(name)
            assert not isinstance(linear, ZigzagLinear)
            weight_of(linear).copy_(weight)


def table(cells: list[Cell]) -> str:
    """The cells as Markdown."""
    rows = [HEADER, ("---",) * len(HEADER), *(cell.columns() for cell in cells)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def support_table(
    model: Annotated[list[str] | None, typer.Option(help="families to run; all of them by default")] = None,
) -> None:
    """Print the support table."""
    unknown = set(model or ()) - FAMILIES.keys()
    if unknown:
        raise ZigpassError(f"unknown models {', '.join(sorted(unknown))}; known are {', '.join(FAMILIES)}")
    chosen: Any = model or list(FAMILIES)
    print(table([measure(family, name) for family in chosen for name in REPRESENTATIONS]), end="")


if __name__ == "__main__":
    from zigpass.cli import run_script

    run_script(support_table)
