"""Quality at several sparsities, rules and allocations, as rows for tables, files and plots."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from zigpass.bytes_read import weight_bytes_per_token
from zigpass.calibrate import budget_of, find_allocation, find_rule, find_thresholds
from zigpass.calibration import Calibration, Selection
from zigpass.evaluate import Quality, evaluate_each
from zigpass.observe import device_of, kept_thresholds
from zigpass.rules import Rule
from zigpass.thresholds import Thresholds
from zigpass.tokens import Texts, text_windows
from zigpass.tools.lm_eval_tasks import run_tasks
from zigpass.tools.provenance import provenance

TOP_K: Final = "top_k"
"""Listed among the rules: magnitude with a fixed count of entries instead of a threshold."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting and what it costs.

    Attributes:
        rule: a name in `zigpass.rules.RULES`, or `TOP_K`.
        used: the allocation that was applied: "uniform" where "measured" gave way to it.
        seconds: to find the thresholds, beyond what earlier rows of the same rule and allocation had measured.
        bytes_read: of packed weights per decoded token, at the realized sparsity.
        worst_site: largest difference between a site's realized and target sparsity.
        window_kls: KL of each window.
        lm_eval: numbers of lm-eval by task and metric, where tasks were asked for.
    """

    target: float
    rule: str
    allocation: str
    used: str
    seconds: float
    bytes_read: int
    realized: float
    worst_site: float
    perplexity: float
    nll_increase: float
    nll_error: float
    kl: float
    kl_error: float
    top1: float
    top1_error: float
    window_kls: tuple[float, ...]
    lm_eval: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """All rows for one model and text, with what they depend on.

    Attributes:
        resumed: some of it was measured by an earlier run, so the times say nothing.
        device: what all of it ran on.
    """

    model: str
    calibration_text: str
    held_out_text: str
    calibration_tokens: int
    scored_tokens: int
    prefix: int
    dense_perplexity: float
    dense_bytes: int
    rows: list[Row]
    machine: dict[str, Any]
    resumed: bool = False
    device: str = ""

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Measurement:
        """Read what `save` wrote."""
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**{**row, "window_kls": tuple(row["window_kls"])}) for row in document.pop("rows")]
        return Measurement(rows=rows, **document)


def rule_and_selection(name: str) -> tuple[Rule, Selection]:
    """The rule of this name; the default rule with a fixed count of entries for `TOP_K`."""
    return (find_rule("magnitude"), "top_k") if name == TOP_K else (find_rule(name), "threshold")


@dataclasses.dataclass(frozen=True)
class Setting:
    """Thresholds to measure, and what finding them took.

    Attributes:
        seconds: beyond what earlier settings of the same rule and allocation had measured.
    """

    rule: str
    allocation: str
    thresholds: Thresholds
    seconds: float


def find_settings(
    calibration: Calibration, targets: Sequence[float], combinations: Sequence[tuple[str, str]]
) -> list[Setting]:
    """Thresholds of every combination at every target.

    Args:
        combinations: (rule, allocation) pairs; the rule may be `TOP_K`.
    """
    found = []
    for name, allocation in combinations:
        rule, selection = rule_and_selection(name)
        selecting = calibration.with_selection(selection)
        for target in targets:
            start = time.perf_counter()
            thresholds = find_thresholds(selecting, find_allocation(allocation), rule, budget_of(selecting, target))
            found.append(Setting(name, allocation, thresholds, time.perf_counter() - start))
    return found


def measure_settings(
    calibration: Calibration,
    settings: Sequence[Setting],
    held_out: Texts,
    *,
    names: tuple[str, str, str],
    tokenizer: Any | None = None,
    num_windows: int = 8,
    lm_eval: tuple[Any, Sequence[str]] | None = None,
    progress: bool = True,
) -> Measurement:
    """Evaluate all settings on the same windows of one held-out text, of the length that calibration had.

    Args:
        held_out, tokenizer: as `texts` and `tokenizer` of `evaluate`.
        names: what to call the model, the calibration text and the held-out text.
        lm_eval: a tokenizer and tasks to run with lm-eval at every setting.
    """
    model, prefix = calibration.model, calibration.prefix
    qualities = evaluate_each(
        model,
        held_out,
        {str(index): setting.thresholds for index, setting in enumerate(settings)},
        tokenizer=tokenizer,
        prefix=prefix,
        window=calibration.windows.shape[1],
        num_windows=num_windows,
        state=calibration.state,
        progress=progress,
    )
    machine = provenance()
    first = next(iter(qualities.values()))
    return Measurement(
        model=names[0],
        calibration_text=names[1],
        held_out_text=names[2],
        calibration_tokens=calibration.num_tokens,
        scored_tokens=first.num_tokens,
        prefix=prefix,
        dense_perplexity=first.dense_perplexity,
        dense_bytes=weight_bytes_per_token(model),
        rows=[
            _row(model, quality, setting, lm_eval)
            for quality, setting in zip(qualities.values(), settings, strict=True)
        ],
        machine=machine,
        resumed=calibration.state.resumed,
        device=_device_name(device_of(model), machine),
    )


def _device_name(device: torch.device, machine: dict[str, Any]) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{machine['cpu']}, {machine['torch_threads']} thread(s)"


def measure_quality(
    model: nn.Module,
    calibration_texts: Texts,
    held_out: Texts,
    *,
    names: tuple[str, str, str],
    tokenizer: Any | None = None,
    targets: Sequence[float],
    combinations: Sequence[tuple[str, str]],
    recalibrate: bool | None = None,
    window: int = 512,
    num_windows: int = 8,
    resume: Path | None = None,
    lm_eval: tuple[Any, Sequence[str]] | None = None,
    progress: bool = True,
) -> Measurement:
    """`find_settings` on one text, then `measure_settings` on another.

    Args:
        calibration_texts, held_out, tokenizer, recalibrate: as for `calibrate` and `evaluate`.
    """
    text_windows(held_out, tokenizer, model, window, num_windows)  # a text that does not do raises before the work
    calibration = Calibration(
        model,
        calibration_texts,
        tokenizer=tokenizer,
        window=window,
        recalibrate=recalibrate,
        resume=resume,
        progress=progress,
    )
    settings = find_settings(calibration, targets, combinations)
    return measure_settings(
        calibration,
        settings,
        held_out,
        names=names,
        tokenizer=tokenizer,
        num_windows=num_windows,
        lm_eval=lm_eval,
        progress=progress,
    )


def _row(
    model: nn.Module,
    quality: Quality,
    setting: Setting,
    lm_eval: tuple[Any, Sequence[str]] | None,
) -> Row:
    thresholds, realized = setting.thresholds, quality.realized_sparsity
    tasks = {}
    if lm_eval is not None:
        with kept_thresholds(model):
            thresholds.apply(model)
            tasks = run_tasks(model, *lm_eval)
    return Row(
        target=thresholds.target_sparsity,
        rule=setting.rule,
        allocation=setting.allocation,
        used=thresholds.allocation,
        seconds=round(setting.seconds, 1),
        bytes_read=weight_bytes_per_token(model, realized),
        realized=quality.total_sparsity,
        worst_site=max(abs(realized[name] - site.target_sparsity) for name, site in thresholds.sites.items()),
        perplexity=quality.perplexity,
        nll_increase=quality.nll_increase,
        nll_error=quality.nll_error,
        kl=quality.kl,
        kl_error=quality.kl_error,
        top1=quality.top1_agreement,
        top1_error=quality.top1_error,
        window_kls=quality.window_kls,
        lm_eval=tasks,
    )


def lead(better: Row, worse: Row) -> tuple[float, float]:
    """How much less KL one row has than another on the same windows, and the standard error of that difference."""
    differences = [b - a for a, b in zip(better.window_kls, worse.window_kls, strict=True)]
    mean = sum(differences) / len(differences)
    if len(differences) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in differences) / (len(differences) - 1)
    return mean, math.sqrt(variance / len(differences))
