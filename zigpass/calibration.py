"""What calibration learns about one model from one text: measured when first needed, used for every target."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .blocks import block_name
from .decode_like import DecodeLike
from .fingerprint import weight_fingerprint
from .gradients import squared_gradients
from .histogram import MagnitudeHistogram
from .linear import find_linears
from .observe import (
    Readers,
    device_of,
    kept_thresholds,
    observe_sites,
    set_thresholds,
    site_readers,
    without_head,
)
from .progress import track
from .resume import StateFile
from .rules import Rule
from .rules.rule import fold
from .site_selection import choose_sites
from .sites import Site, dense
from .tokens import Texts, encode, fingerprint_of, spread_windows

SKIPPED_POSITIONS = 32
"""Positions at the start of each window that are not counted: the first tokens draw massive activations that say
little about decoding further on."""

NUM_PROBES = 2
"""Windows for measurements that run once per site. On SmolLM2 two windows rank the
sites as eight do (KL 0.256 with either)."""

NUM_HELD_OUT = 2
"""Windows of the calibration text that only compare allocations."""


class Calibration:
    """A model and a calibration text, with what was found about them so far.

    Attributes:
        sites: the chosen sites by name; the others stay dense.
        all_sites: every site of the model that a linear reads.
        readers: the linears that read each chosen site.
        num_bytes: code bytes of these linears.
        windows: int64 [windows, T], for histograms.
        held_out: int64 [windows, T], for comparing allocations; empty where the text is one window long.
        block_of_site: name of the repeated block each site is in, None for a site outside.

    Args:
        model, texts, tokenizer, window, num_windows, progress, resume: as for `calibrate`.
        sites: kinds or name patterns; None for all.

    Raises:
        ZigpassError: a model without packed linears, a pattern without site, too little text.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Texts,
        *,
        sites: Sequence[str] | None = None,
        tokenizer: Any | None = None,
        window: int = 512,
        num_windows: int = 8,
        resume: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        if window <= SKIPPED_POSITIONS or num_windows < 1:
            raise ZigpassError(
                f"calibration needs windows longer than {SKIPPED_POSITIONS} tokens and at least one of them,"
                f" got window={window}, num_windows={num_windows}"
            )
        readers = site_readers(model)
        if not readers:
            raise ZigpassError(
                f"{type(model).__name__} has no packed linears to calibrate;"
                " call zigpass.quantize_ or zigpass.load_gguf"
            )
        chosen = choose_sites(readers, sites)
        self.model = model
        self.progress = progress
        self.skip = SKIPPED_POSITIONS
        self.prefix = window // 2
        self.all_sites = {site.name: site for site in readers}
        self.readers: Readers = {site: linears for site, linears in readers.items() if site.name in chosen}
        self.sites = {site.name: site for site in self.readers}
        self.num_bytes = {
            site.name: sum(linear.codes.numel() * linear.codes.element_size() for linear in linears)
            for site, linears in self.readers.items()
        }
        names = {linear: name for name, linear in find_linears(model)}
        self.block_of_site = {site.name: block_name(model, names[own[0]]) for site, own in self.readers.items()}
        self.windows, self.held_out = _split(encode(texts, tokenizer, model), window, num_windows)
        self.fingerprint = weight_fingerprint(model)
        self.text_hash = fingerprint_of(self.windows)
        self.state = StateFile(
            resume,
            {"weights": self.fingerprint, "text": self.text_hash, "window": window, "probes": NUM_PROBES},
        )
        self._scores: dict[str, dict[str, MagnitudeHistogram]] = {}
        self._weights: dict[str, dict[str, Tensor] | None] = {}
        self._gradients: dict[str, Tensor] | None = None
        self._comparison: DecodeLike | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens counted in the histograms."""
        return self.windows.shape[0] * (self.windows.shape[1] - self.skip)

    @property
    def probe_windows(self) -> Tensor:
        """int64 [windows, T]: the few windows for measurements that run once per site."""
        indices = torch.linspace(0, len(self.windows) - 1, min(NUM_PROBES, len(self.windows))).long()
        return self.windows[indices]

    def weights_of(self, rule: Rule) -> dict[str, Tensor] | None:
        """The rule's weight of every column, by site."""
        if rule.name not in self._weights:
            self._weights[rule.name] = rule.column_weights(self)
        return self._weights[rule.name]

    def scores_of(self, rule: Rule) -> dict[str, MagnitudeHistogram]:
        """Histograms of the rule's scores in the dense model, by site."""
        return self.scores(rule.name, self.weights_of(rule))

    def scores(self, key: str, weights: Mapping[str, Tensor] | None) -> dict[str, MagnitudeHistogram]:
        """Histograms of |x_k| * weight_k in the dense model, by site; collected once per key.

        Raises:
            ZigpassError: activations that are not finite, or a site that the model never uses.
        """
        if key not in self._scores:
            histograms, count = self._counter(weights or {}, self.skip)
            decoder = without_head(self.model)
            with torch.inference_mode(), dense(self.model), observe_sites(self.readers, count):
                for ids in track(self.windows, "calibrating", show=self.progress):
                    decoder(ids.unsqueeze(0).to(device_of(self.model)), use_cache=False)
            self._scores[key] = _checked(histograms)
        return self._scores[key]

    def sparse_scores(self, rule: Rule, thresholds: Mapping[str, Tensor]) -> dict[str, MagnitudeHistogram]:
        """Histograms of the rule's scores while the model runs as in decoding with these thresholds, by site."""
        histograms, count = self._counter(self.weights_of(rule) or {}, 0)
        with kept_thresholds(self.model):
            set_thresholds(self.all_sites, thresholds)
            for ids in track(self.windows, "calibrating sparsely", show=self.progress):
                run = DecodeLike(self.model, ids.unsqueeze(0), self.prefix, reference=False)
                with observe_sites(self.readers, count):
                    run.run()
        return _checked(histograms)

    def squared_gradients(self) -> dict[str, Tensor]:
        """Mean squared gradient of every column, by site."""
        if self._gradients is None:
            windows = self.probe_windows
            with dense(self.model):
                found = squared_gradients(self.model, self.readers, windows, self.skip, progress=self.progress)
            self._gradients = found
        return self._gradients

    def thresholds_for(self, rule: Rule, sparsity: Mapping[str, float]) -> dict[str, Tensor]:
        """Thresholds, by site, that give these sparsities in the dense model."""
        scores, weights = self.scores_of(rule), self.weights_of(rule) or {}
        return {name: fold(scores[name].quantile(share), weights.get(name)) for name, share in sparsity.items()}

    def held_out_kl(self, rule: Rule, sparsity: Mapping[str, float]) -> float:
        """Mean KL of the model with all sites sparse, on the calibration windows that nothing was fitted to.

        Raises:
            ZigpassError: the text is too short to hold some of it out.
        """
        if not len(self.held_out):
            raise ZigpassError(
                f"comparing allocations needs a text of at least two windows of {self.windows.shape[1]} tokens; pass a"
                ' longer text, a smaller window, or allocation="uniform"'
            )
        if self._comparison is None:
            self._comparison = DecodeLike(self.model, self.held_out, self.prefix)
        with kept_thresholds(self.model):
            set_thresholds(self.all_sites, self.thresholds_for(rule, sparsity))
            return float(self._comparison.kl(self._comparison.run()).mean())

    def _counter(self, weights: Mapping[str, Tensor], skip: int) -> tuple[dict[str, MagnitudeHistogram], Any]:
        histograms = {name: MagnitudeHistogram() for name in self.sites}

        def count(site: Site, x: Tensor) -> None:
            scores = x[..., skip:, :].float()
            if site.name in weights:
                scores = scores * weights[site.name].to(x.device)
            try:
                histograms[site.name].add(scores)
            except ZigpassError as error:
                raise ZigpassError(f"{site.name}: {error}") from error

        return histograms, count


def _checked(histograms: dict[str, MagnitudeHistogram]) -> dict[str, MagnitudeHistogram]:
    silent = [name for name, histogram in histograms.items() if not histogram.total]
    if silent:
        raise ZigpassError(f"the model never used these sites on the calibration text: {', '.join(silent)}")
    return histograms


def _split(ids: Tensor, window: int, num_windows: int) -> tuple[Tensor, Tensor]:
    """Windows to count in and windows to compare on, both spread over the text; the second may be empty."""
    windows = spread_windows(ids, window, num_windows + NUM_HELD_OUT)
    held_out = min(NUM_HELD_OUT, len(windows) - 1)
    # In the middle of equal parts, so that a text whose subject changes is represented in both.
    chosen = {int((part + 0.5) * len(windows) / held_out) for part in range(held_out)} if held_out else set()
    rest = [index for index in range(len(windows)) if index not in chosen]
    return windows[rest], windows[sorted(chosen)]
