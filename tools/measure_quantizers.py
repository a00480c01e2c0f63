"""What quantizing costs a float model, for several quantizers."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zigpass.config import ZigzagConfig
from zigpass.linear import find_linears
from zigpass.progress import track
from zigpass.quantize import quantize_
from zigpass.tokens import text_windows
from zigpass.tools.provenance import provenance

CONFIGS: dict[str, ZigzagConfig] = {
    f"{axis}, {method}": ZigzagConfig(scale_axis=axis, method=method, group_size=64)
    for axis in ("out", "in")
    for method in ("rtn", "mse", "gptq")
}
"""Both scale forms at 4.5 bits a weight (more where rows are padded to 128), by every method."""


@dataclasses.dataclass(frozen=True)
class QuantizerRow:
    """One quantizer against the float weights it started from, on the second halves of held-out windows."""

    name: str
    bits_per_weight: float
    seconds: float
    kl: float
    kl_error: float
    nll_increase: float
    top1: float


@dataclasses.dataclass(frozen=True)
class QuantizerMeasurement:
    """All rows for one model and text."""

    model: str
    calibration_text: str
    held_out_text: str
    scored_tokens: int
    rows: list[QuantizerRow]
    machine: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> QuantizerMeasurement:
        """Read what `save` wrote."""
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [QuantizerRow(**row) for row in document.pop("rows")]
        return QuantizerMeasurement(rows=rows, **document)


def measure_quantizers(
    model: nn.Module,
    calibration_ids: Tensor,
    held_out_ids: Tensor,
    *,
    names: tuple[str, str, str],
    configs: Mapping[str, ZigzagConfig] = CONFIGS,
    window: int = 512,
    num_windows: int = 8,
    progress: bool = True,
) -> QuantizerMeasurement:
    """Quantize copies of a float model and compare their next-token distributions with its own.

    Args:
        names: what to call the model, the calibration text and the held-out text.
    """
    windows = text_windows(held_out_ids, None, model, window, num_windows)
    reference = _log_probabilities(model, windows)
    rows = []
    for name, config in track(configs.items(), "quantizers", total=len(configs), show=progress):
        start = time.perf_counter()
        quantized = quantize_(copy.deepcopy(model), config, calibration=calibration_ids, window=window, progress=False)
        seconds = time.perf_counter() - start
        rows.append(_row(name, quantized, windows, reference, seconds))
    return QuantizerMeasurement(*names, sum(len(part) for part in reference), rows, provenance())


def _row(name: str, model: nn.Module, windows: Tensor, reference: list[Tensor], seconds: float) -> QuantizerRow:
    found = _log_probabilities(model, windows)
    targets = [ids[-len(part) :] for ids, part in zip(windows, reference, strict=True)]
    kl, kl_error = _mean(
        [float(F.kl_div(a, b, reduction="batchmean", log_target=True)) for a, b in zip(found, reference, strict=True)]
    )
    increase, _ = _mean(
        [
            float(F.nll_loss(a, target) - F.nll_loss(b, target))
            for a, b, target in zip(found, reference, targets, strict=True)
        ]
    )
    top1, _ = _mean(
        [float((a.argmax(-1) == b.argmax(-1)).float().mean()) for a, b in zip(found, reference, strict=True)]
    )
    linears = [linear for _, linear in find_linears(model)]
    weights = sum(linear.in_features * linear.out_features for linear in linears)
    bits = 8 * sum(linear.packed.num_bytes for linear in linears) / weights
    return QuantizerRow(name, round(bits, 2), round(seconds, 1), kl, kl_error, increase, top1)


def _log_probabilities(model: nn.Module, windows: Tensor) -> list[Tensor]:
    """Of the second half of each window but its last position, float32 [T, vocabulary] each."""
    half = windows.shape[1] // 2
    with torch.inference_mode():
        return [model(ids[None]).logits[0, half:-1].float().log_softmax(-1) for ids in windows]


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return float(tensor.mean()), float(tensor.std(correction=1)) / len(values) ** 0.5
