"""`calibrate`: thresholds for a target sparsity, from text."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from zigpass.runtime import ZigpassError

from .allocations import ALLOCATIONS, Allocation
from .allocations.budget import Budget
from .calibration import NUM_WINDOWS, Calibration, Selection
from .decode_like import check_causal_model
from .rules import RULES, Rule
from .rules.rule import fold
from .site_selection import values_by_site
from .thresholds import SiteThreshold, Thresholds
from .tokens import Texts

logger = logging.getLogger("zigpass.calibrate")

MAX_SPARSITY = 0.95
"""No site is made sparser unless asked: beyond it a few entries carry a whole activation."""

T = TypeVar("T")


def calibrate(
    model: nn.Module,
    texts: Texts,
    target_sparsity: float = 0.5,
    *,
    allocation: str = "measured",
    rule: str = "magnitude",
    sites: Sequence[str] | None = None,
    pinned: Mapping[str, float] | None = None,
    max_sparsity: float | Mapping[str, float] = MAX_SPARSITY,
    selection: Selection = "threshold",
    recalibrate: bool | None = None,
    tokenizer: Any | None = None,
    window: int = 512,
    num_windows: int = NUM_WINDOWS,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Thresholds:
    """Find the threshold of every site for a target sparsity, and set the model's thresholds to them.

    The text runs through the dense model; magnitudes are counted in a fixed-size histogram per site, so memory does not
    grow with the text. The result depends on the model, the text and the arguments only.

    Args:
        model: a prepared or quantized causal language model.
        texts: plain text to calibrate on, or token ids. Several kinds of text make thresholds hold on more texts; each
            of several texts gives the same number of windows.
        target_sparsity: share of the code bytes of the chosen sites' weights that decoding should not read, in [0, 1).
        allocation: how the target is spread over the sites. "measured" runs the model once per site and equalizes what
            each byte costs in KL, tries the middles between that and the others, and takes what loses least on held-out
            calibration text; where that is "uniform" it says so.
            "uniform" is the same sparsity everywhere and the fastest; "teal" and "sensitivity" are for comparison.
        rule: how entries are scored: "magnitude", "column_norm" (WINA) or "sensitivity".
        sites: which sites become sparse, by kind ("mlp_in", "mlp_mid", ...) or name pattern; None for all. The others
            stay dense.
        pinned: {kind or name pattern: sparsity} of sites that are not to be chosen freely. The last pattern that fits
            a site wins.
        max_sparsity: most sparsity of a site that is not pinned, for all or as {kind or name pattern: sparsity}.
        selection: "threshold" leaves entries below a fixed number unread, so that hard tokens may read more; "top_k"
            reads the same number of entries, the largest, for every token. The latter runs on the CPU only.
        recalibrate: place the thresholds on activations as decoding makes them, after sparse sites, instead of dense
            ones. None does so for models with a key-value cache. On SmolLM2 and another text at 60 % it takes the site
            furthest from its sparsity from 0.13 to 0.05, and the KL of "measured" from 0.69 to 0.61.
        tokenizer: a Hugging Face tokenizer; None looks beside the model's checkpoint.
        window: tokens run together; the first 32 of each window are not counted. Where decoding is measured, half of it
            runs densely and a quarter as decoding.
        num_windows: windows, spread evenly over the text, and up to five more to compare allocations. What matters is
            how many places of the text are seen, not how many tokens. Placing thresholds holds the keys and values of
            all windows twice: take fewer where a large model leaves no room for them.
        resume: a small file in which finished measurements of sites are kept. After Ctrl-C the next call with the same
            file goes on where the first stopped; a call for another target measures nothing again.
        progress: show a progress bar.

    Returns:
        The thresholds, already applied; `.save(path)` keeps them.

    Raises:
        ZigpassError: arguments out of range, a target that pins and caps do not allow, a pattern without site, a model
            without packed linears, too little text, NaN activations. The model's thresholds are as they were then, as
            they are after Ctrl-C.
    """
    check_target(target_sparsity)
    spread, score = find_allocation(allocation), find_rule(rule)
    calibration = Calibration(
        model,
        texts,
        sites=sites,
        tokenizer=tokenizer,
        window=window,
        num_windows=num_windows,
        selection=selection,
        recalibrate=recalibrate,
        resume=resume,
        progress=progress,
    )
    if spread.name == "measured":
        check_causal_model(model)
    budget = budget_of(calibration, target_sparsity, pinned or {}, max_sparsity)
    thresholds = find_thresholds(calibration, spread, score, budget)
    thresholds.apply(model)
    return thresholds


def check_target(target_sparsity: float) -> None:
    """Raise `ZigpassError` unless the target is at least 0 and below 1."""
    if not 0 <= target_sparsity < 1:
        raise ZigpassError(f"target_sparsity must be at least 0 and below 1, got {target_sparsity}")


def find_allocation(name: str) -> Allocation:
    """The allocation of this name, or `ZigpassError`."""
    return _find(ALLOCATIONS, name, "allocation")


def find_rule(name: str) -> Rule:
    """The rule of this name, or `ZigpassError`."""
    return _find(RULES, name, "rule")


def budget_of(
    calibration: Calibration,
    target_sparsity: float,
    pinned: Mapping[str, float] | None = None,
    max_sparsity: float | Mapping[str, float] = MAX_SPARSITY,
) -> Budget:
    """The budget for a target; pins and caps by pattern."""
    sites = calibration.sites.values()
    given = max_sparsity if isinstance(max_sparsity, Mapping) else {"*": max_sparsity}
    caps = {**dict.fromkeys(calibration.sites, MAX_SPARSITY), **values_by_site(sites, given, "max_sparsity")}
    return Budget(target_sparsity, calibration.num_bytes, values_by_site(sites, pinned or {}, "pinned"), caps)


def find_thresholds(calibration: Calibration, allocation: Allocation, rule: Rule, budget: Budget) -> Thresholds:
    """Thresholds for a budget; the model's own are left alone."""
    if calibration.selection == "top_k" and rule.name != "magnitude":
        raise ZigpassError(f'selection="top_k" takes the entries of largest magnitude; rule {rule.name!r} cannot apply')
    spread = allocation.spread(calibration, rule, budget)
    found = {name: SiteThreshold(fold(0.0, None), 0.0, 0.0) for name in calibration.all_sites}
    found.update(calibration.thresholds_for(rule, spread.sparsity))
    model = calibration.model
    return Thresholds(
        sites=found,
        target_sparsity=budget.target,
        rule=rule.name,
        allocation=spread.allocation,
        model_id=str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__),
        fingerprint=calibration.fingerprint,
        text_hash=calibration.text_hash,
        num_tokens=calibration.num_tokens,
    )


def _find(known: Mapping[str, T], name: str, argument: str) -> T:
    if name not in known:
        raise ZigpassError(f"{argument} must be one of {', '.join(known)}, got {name!r}")
    return known[name]
