"""What sparsity costs: perplexity, KL and top-1 agreement against the dense model, the way decoding would see it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .decode_like import DecodeLike, check_causal_model
from .fingerprint import thresholds_fingerprint
from .heap import trim_heap
from .histogram import NOT_FINITE
from .observe import Readers, kept_thresholds, observe_sites, set_thresholds, site_readers
from .progress import track
from .resume import StateFile
from .sites import Site, find_sites
from .thresholds import Thresholds
from .tokens import Texts, fingerprint_of, text_windows, vocabulary_size

BATCH_BYTES = 1 << 28
"""Log probabilities of the windows that run side by side; a few copies of them exist at a time. On SmolLM2 four windows
together take 1.1 s each on one core, one alone 1.5 s."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of the sparse model on held-out text, against the same weights read densely.

    Standard errors are over the windows; NaN when there is one window only.

    Attributes:
        dense_perplexity, perplexity: of the dense and the sparse model on the scored tokens.
        nll_increase, nll_error: mean loss of the sparse model beyond the dense one's, nats, and its standard error.
        kl, kl_error: mean KL(dense || sparse) of the next-token distributions, nats, and its standard error.
        top1_agreement, top1_error: share of positions where both prefer the same token, and its standard error.
        realized_sparsity: by site name, share of entries that were not read.
        total_sparsity: share of the code bytes that were not read, over all sites.
        num_tokens: scored tokens.
        window_kls: KL of each window, to compare two settings window by window.
    """

    dense_perplexity: float
    perplexity: float
    nll_increase: float
    nll_error: float
    kl: float
    kl_error: float
    top1_agreement: float
    top1_error: float
    realized_sparsity: dict[str, float]
    total_sparsity: float
    num_tokens: int
    window_kls: tuple[float, ...]


def evaluate(
    model: nn.Module,
    texts: Texts,
    *,
    tokenizer: Any | None = None,
    prefix: int = 256,
    window: int = 512,
    num_windows: int = 8,
    progress: bool = True,
) -> Quality:
    """Measure a model with its current thresholds, decode-like.

    The first `prefix` tokens of every window run dense and leave their keys and values in the cache; the rest run
    sparse, one threshold decision per token as in decoding, and are scored.

    Args:
        model: a prepared causal language model of the Hugging Face interface.
        texts: held-out text, or token ids; each of several texts gives the same number of windows.
        tokenizer: as for `calibrate`.

    Raises:
        ZigpassError: too little text, a model without packed linears, a prefix that leaves nothing to score, or
            activations that are not finite.
    """
    settings: dict[str, Thresholds | None] = {"": None}
    return evaluate_each(
        model,
        texts,
        settings,
        tokenizer=tokenizer,
        prefix=prefix,
        window=window,
        num_windows=num_windows,
        progress=progress,
    )[""]


def evaluate_each(
    model: nn.Module,
    texts: Texts,
    settings: Mapping[str, Thresholds | None],
    *,
    tokenizer: Any | None = None,
    prefix: int = 256,
    window: int = 512,
    num_windows: int = 8,
    state: StateFile | None = None,
    progress: bool = True,
) -> dict[str, Quality]:
    """`evaluate` for several thresholds on the same windows; the dense model runs once for all of them.

    Args:
        settings: thresholds by a name of your choice; None stands for the model's current ones, which it has again
            afterwards.
        state: keeps the scores of finished windows. The file must be one of this model.

    Returns:
        The quality of each, by the same names.
    """
    if not 0 < prefix < window - 1:
        raise ZigpassError(f"prefix must leave tokens to score: 0 < prefix < window - 1, got {prefix} and {window}")
    readers = site_readers(model)
    if not readers:
        raise ZigpassError(
            f"{type(model).__name__} has no packed linears to evaluate; call zigpass.prepare or zigpass.quantize_ first"
        )
    check_causal_model(model)
    sites = find_sites(model)
    for thresholds in settings.values():
        if thresholds is not None:
            thresholds.check(model)
    present = {name: site.threshold.clone() for name, site in sites.items()}
    values = {
        name: present if thresholds is None else {site: own.threshold for site, own in thresholds.sites.items()}
        for name, thresholds in settings.items()
    }
    windows = text_windows(texts, tokenizer, model, window, num_windows)
    kept = StateFile(None, {}) if state is None else state
    scores: dict[str, list[_Scores]] = {name: [] for name in settings}
    for ids in track(windows.split(_batch(model, window - prefix)), "evaluating", show=progress):
        batch = _Batch(model, ids, prefix, readers)
        stage = f"scores from {prefix} of {fingerprint_of(ids)}"
        for name, own in values.items():
            score = kept.keep(stage, thresholds_fingerprint(own), functools.partial(batch.score, own))
            scores[name].append(_Scores(**score))
    return {name: _quality(own, readers) for name, own in scores.items()}


def _batch(model: nn.Module, rows: int) -> int:
    """How many windows run side by side: each piece of a weight is then dequantized once for all of them."""
    vocabulary = vocabulary_size(model)
    return 1 if vocabulary is None else max(1, BATCH_BYTES // (4 * rows * vocabulary))


@dataclasses.dataclass(frozen=True)
class _Scores:
    """What one setting gives on the scored tokens of some windows; lists have a mean for each window.

    Attributes:
        counts: by site name, how many entries were not read, and how many there were.
    """

    counts: dict[str, tuple[int, int]]
    num_tokens: int
    dense_nll: list[float]
    nll: list[float]
    kl: list[float]
    agreement: list[float]


class _Batch:
    """Some windows side by side. The dense model runs on them when the first setting is to be scored."""

    def __init__(self, model: nn.Module, ids: Tensor, prefix: int, readers: Readers) -> None:
        self._model = model
        self._ids = ids
        self._prefix = prefix
        self._readers = readers
        self._sites = find_sites(model)

    @functools.cached_property
    def _run(self) -> DecodeLike:
        return DecodeLike(self._model, self._ids, self._prefix)

    def score(self, thresholds: Mapping[str, Tensor]) -> dict[str, Any]:
        """The fields of `_Scores` with these thresholds, as JSON can hold them."""
        counts: dict[str, tuple[int, int]] = {}

        def count(site: Site, x: Tensor) -> None:
            if not bool(torch.isfinite(x).all()):
                raise ZigpassError(f"{site.name}: {NOT_FINITE}")
            counts[site.name] = (int(site.inactive(x).sum()), x.numel())

        run = self._run
        with kept_thresholds(self._model):
            set_thresholds(self._sites, thresholds)
            with observe_sites(self._readers, count):
                sparse = run.run()
        scores = _Scores(
            counts=counts,
            num_tokens=run.targets.numel(),
            dense_nll=_mean_loss(run.dense, run.targets),
            nll=_mean_loss(sparse, run.targets),
            kl=run.kl(sparse).tolist(),
            agreement=(run.dense.argmax(-1) == sparse.argmax(-1)).float().mean(-1).tolist(),
        )
        del sparse  # as large as the vocabulary times the scored tokens: trimmed next
        trim_heap()
        return dataclasses.asdict(scores)


def _mean_loss(log_probabilities: Tensor, targets: Tensor) -> list[float]:
    """Cross-entropy of each window, nats."""
    losses: list[float] = (-log_probabilities.gather(-1, targets.unsqueeze(-1))).mean((-2, -1)).tolist()
    return losses


def _quality(scores: list[_Scores], readers: Readers) -> Quality:
    realized = {
        name: sum(score.counts[name][0] for score in scores) / sum(score.counts[name][1] for score in scores)
        for name in scores[0].counts
    }
    num_bytes = {site.name: sum(linear.codes.nbytes for linear in linears) for site, linears in readers.items()}
    seen_bytes = sum(num_bytes[name] for name in realized)
    kls = [kl for score in scores for kl in score.kl]
    dense_nlls = [nll for score in scores for nll in score.dense_nll]
    nlls = [nll for score in scores for nll in score.nll]
    kl, kl_error = _mean(kls)
    top1, top1_error = _mean([share for score in scores for share in score.agreement])
    increase, nll_error = _mean([nll - dense_nll for nll, dense_nll in zip(nlls, dense_nlls, strict=True)])
    return Quality(
        dense_perplexity=math.exp(_mean(dense_nlls)[0]),
        perplexity=math.exp(_mean(nlls)[0]),
        nll_increase=increase,
        nll_error=nll_error,
        kl=kl,
        kl_error=kl_error,
        top1_agreement=top1,
        top1_error=top1_error,
        realized_sparsity=realized,
        total_sparsity=sum(realized[name] * num_bytes[name] for name in realized) / seen_bytes,
        num_tokens=sum(score.num_tokens for score in scores),
        window_kls=tuple(kls),
    )


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    tensor = torch.tensor(values, dtype=torch.float64)
    error = float(tensor.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(tensor.mean()), error
