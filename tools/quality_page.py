"""The results page, from measurements: docs/quality.md."""

from __future__ import annotations

import re
from pathlib import Path

from zigpass.tools.measure_quality import Measurement, Row, lead
from zigpass.tools.measure_quantizers import QuantizerMeasurement

GOALS: dict[str, dict[float, tuple[float, float | None]]] = {
    "SmolLM2-135M": {0.25: (0.025, 0.91), 0.4: (0.115, 0.80), 0.5: (0.27, 0.72)},
    "gemma-3-270m": {0.5: (0.36, None)},
}
"""By model name and target sparsity: at most this KL and at least this top-1 agreement, for the default."""
GOAL_TEXT = "lcet10.txt"
"""The held-out text they were set on, in an earlier study of another implementation."""
QUANTIZER_GOAL = ("out, gptq", 0.10)

HEAD = """# Quality

What sparsity costs, measured by

    python tools/quality.py MODEL --calibration BOOK.txt --calibration OTHER.txt --text HELD_OUT.txt --unwrap

for any causal language model (`--resume FILE` goes on after Ctrl-C). Numbers compare a model with itself: the same
weights, read densely. The first half of each held-out window runs densely and fills the key-value cache, as a prompt
does; the second half runs sparsely, one threshold decision per token, as decoding does, and is scored.

- **KL** is the mean divergence of the sparse model's next-token distribution from the dense one's, in nats, with its
  standard error over the windows. Settings are compared window by window, so differences are known better than the
  errors of the single numbers suggest.
- **top-1** is the share of positions where both prefer the same token.
- **realized** is the share of weight bytes that was not read on the held-out text; **worst site** is the largest
  distance of one site's realized sparsity from its target.
- **bytes** are the packed weight bytes that one decoded token reads.
- Held-out text decides nothing. What "measured" takes, its own spread, a middle or "uniform", is decided on windows of
  the calibration text.
- Where a model's tokenizer begins every text with a token, every window begins with it.
- Rule **top_k** is magnitude with a fixed count of entries for every token; the others are thresholds, placed on
  activations of the calibration text as decoding makes them, after sparse sites.
"""


def quality_page(measurements: list[Measurement], quantizers: list[QuantizerMeasurement]) -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for measurement in measurements:
        parts += [_model_section(measurement), _rows_table(measurement), _comparison(measurement)]
        goals = next((own for name, own in GOALS.items() if measurement.model.startswith(name)), None)
        if goals is not None:
            parts.append(_goals(measurement, goals))
    parts += [_quantizer_section(measurement) for measurement in quantizers]
    return "\n".join(parts)


def slug(measurement: Measurement) -> str:
    """What the files of a measurement are called, without ending."""
    text = re.sub(r"[^A-Za-z0-9]+", "-", Path(measurement.held_out_text).stem)
    return f"quality-{measurement.model}-{text}"


def _model_section(measurement: Measurement) -> str:
    packages = measurement.machine["packages"]
    return (
        f"## {measurement.model} on {measurement.held_out_text}\n\n"
        f"Calibrated on {measurement.calibration_text} ({measurement.calibration_tokens} tokens counted), measured on"
        f" {measurement.held_out_text} ({measurement.scored_tokens} tokens scored after {measurement.prefix} dense ones"
        f" each). Dense: perplexity {measurement.dense_perplexity:.2f}, {measurement.dense_bytes:,} bytes a token."
        f" torch {packages['torch']}, {measurement.device}.\n\n"
        f"![KL against bytes read]({slug(measurement)}.png)\n"
    )


def _rows_table(measurement: Measurement) -> str:
    lines = [
        "| target | rule | allocation | realized | worst site | bytes | perplexity | KL | top-1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(measurement.rows, key=lambda row: (row.target, row.kl)):
        mark = "**" if (row.rule, row.allocation) == ("magnitude", "measured") else ""
        allocation = row.allocation if row.used == row.allocation else f"{row.allocation} (gave way to {row.used})"
        lines.append(
            f"| {row.target:.0%} | {row.rule} | {mark}{allocation}{mark} | {row.realized:.1%} | {row.worst_site:.3f} |"
            f" {row.bytes_read / 1e6:.1f} M | {row.perplexity:.2f} | {mark}{row.kl:.4f}{mark} ± {row.kl_error:.4f} |"
            f" {row.top1:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _comparison(measurement: Measurement) -> str:
    """How far the default is ahead of each other allocation."""
    default = {row.target: row for row in measurement.rows if (row.rule, row.allocation) == ("magnitude", "measured")}
    others = [row for row in measurement.rows if row.target in default and row is not default[row.target]]
    if not others:
        return ""
    lines = [
        "KL that the default (measured, magnitude) has less than the others, ± the standard error of the difference:\n",
        "| than | " + " | ".join(f"{target:.0%}" for target in sorted(default)) + " |",
        "|---|" + "---|" * len(default),
    ]
    settings = dict.fromkeys((row.allocation, row.rule) for row in others)
    for allocation, rule in settings:
        cells = [_lead_cell(default[target], _find(others, target, allocation, rule)) for target in sorted(default)]
        lines.append(f"| {allocation}, {rule} | " + " | ".join(cells) + " |")
    table = "\n".join([*lines, "", *_best_allocations(default, measurement.rows)]) + "\n"
    if measurement.resumed:
        return table
    seconds = {allocation: round(_cost(measurement, allocation)) for allocation in _allocations(measurement)}
    cost = ", ".join(f"{allocation} {value} s" for allocation, value in seconds.items())
    return table + f"\nWall time for the thresholds of the first target, rule magnitude, beside other work: {cost}.\n"


def _best_allocations(default: dict[float, Row], rows: list[Row]) -> list[str]:
    """One line per target: whether the default is the best allocation of magnitude thresholds."""
    lines = []
    for target, row in sorted(default.items()):
        best = min((other for other in rows if (other.target, other.rule) == (target, "magnitude")), key=lambda r: r.kl)
        behind, error = lead(best, row)
        if best is row:
            verdict = "the best"
        elif behind <= error:
            verdict = f"within one standard error of the best, {best.allocation}"
        else:
            verdict = f"{behind:.4f} ± {error:.4f} behind the best, {best.allocation}"
        lines.append(f"- Among allocations with the rule magnitude, at {target:.0%} the default is {verdict}.")
    return lines


def _allocations(measurement: Measurement) -> list[str]:
    return list(dict.fromkeys(row.allocation for row in measurement.rows if row.rule == "magnitude"))


def _cost(measurement: Measurement, allocation: str) -> float:
    return max(row.seconds for row in measurement.rows if (row.rule, row.allocation) == ("magnitude", allocation))


def _find(rows: list[Row], target: float, allocation: str, rule: str) -> Row | None:
    found = [row for row in rows if (row.target, row.allocation, row.rule) == (target, allocation, rule)]
    return found[0] if found else None


def _lead_cell(default: Row, other: Row | None) -> str:
    if other is None:
        return "-"
    mean, error = lead(default, other)
    return f"{mean:+.4f} ± {error:.4f}"


def _goals(measurement: Measurement, goals: dict[float, tuple[float, float | None]]) -> str:
    lines = [
        f"Goals for the default on this model, set on {GOAL_TEXT}:\n",
        "| target | KL at most | KL | top-1 at least | top-1 | met |",
        "|---|---|---|---|---|---|",
    ]
    for target, (kl, top1) in goals.items():
        row = _find(measurement.rows, target, "measured", "magnitude")
        if row is not None:
            met = "yes" if row.kl <= kl and row.top1 >= (top1 or 0) else "no"
            wanted = "-" if top1 is None else f"{top1:.0%}"
            lines.append(f"| {target:.0%} | {kl} | {row.kl:.4f} | {wanted} | {row.top1:.1%} | {met} |")
    return "\n".join(lines) + "\n"


def _quantizer_section(measurement: QuantizerMeasurement) -> str:
    name, goal = QUANTIZER_GOAL
    lines = [
        f"## Quantizing {measurement.model}\n",
        "Against the weights each quantizer starts from, all dense. SmolLM2's weights are 4-bit codes already, on"
        " another grid; `load_gguf` keeps those without loss, so this compares quantizers and is not the way to load"
        " that model.",
        f"Fitted to {measurement.calibration_text}, measured on {measurement.held_out_text}"
        f" ({measurement.scored_tokens} tokens). Goal: {name} at most {goal} nats.\n",
        "| scales along, method | bits a weight | KL | loss, nats | top-1 | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in measurement.rows:
        lines.append(  # noqa: PERF401  # reads better than one long comprehension
            f"| {row.name} | {row.bits_per_weight} | {row.kl:.4f} ± {row.kl_error:.4f} | {row.nll_increase:+.4f} |"
            f" {row.top1:.1%} | {row.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"
