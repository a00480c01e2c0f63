"""What calibration learns about one model from one text: measured when first needed, used for every target."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .blocks import block_name
from .decode_like import DecodeLike, check_causal_model, takes_cache
from .fingerprint import sparsity_fingerprint, thresholds_fingerprint, weight_fingerprint
from .gradients import squared_gradients
from .heap import trim_heap
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
from .placement import Placed, count_scores, place, place_count, place_sparsely
from .progress import track
from .resume import StateFile
from .rules import Rule
from .site_selection import choose_sites
from .sites import Site, dense
from .thresholds import SiteThreshold
from .tokens import Texts, fingerprint_of, text_windows

SKIPPED_POSITIONS = 32
"""Positions at the start of each window that are not counted: the first tokens draw massive activations that say
little about decoding further on."""

NUM_WINDOWS = 24
"""Windows to place thresholds on. From 8 to 24 the site of SmolLM2 that is furthest from its sparsity on another text
(50 %) comes from 6.3 to 4.9 points near it. On other windows of the same texts it is 2.3 points away: what is left is
the other text, and more kinds of text to calibrate on bring it nearer (five of equal weight instead of three: from 5.1
to 3.7 points)."""

NUM_PROBES = 3
"""Windows for measurements that run once per site. On SmolLM2 two windows rank the sites as eight do (KL 0.256 with
either); the third is for calibration texts of several kinds."""

DECODED_SHARE = 4
"""One part in so many of a window is run as decoding, after a dense half: many places of the text say more about
thresholds and costs than many tokens of few."""

DENSE_STEP = 3
"""Every so-manieth window is counted in the dense model where thresholds are not placed there: the histograms only
shape allocations then."""

NUM_HELD_OUT = 5
"""Windows of the calibration text that only compare allocations, and never more than a fifth of all. With two, of five
texts, the worse of two spreads was taken on SmolLM2 at 50 %: KL 0.263 on another text, where the one that five windows
prefer loses 0.251 (64 windows, errors of 0.005)."""

Selection = Literal["threshold", "top_k"]
SELECTIONS: Final[tuple[Selection, ...]] = ("threshold", "top_k")


class Calibration:
    """A model and a calibration text, with what was found about them so far.

    Attributes:
        sites: the chosen sites by name; the others stay dense.
        all_sites: every site of the model that a linear reads.
        readers: the linears that read each chosen site.
        num_bytes: code bytes of these linears.
        windows: int64 [windows, T], for histograms.
        held_out: int64 [windows, T], for comparing allocations; empty where the text is one window long.
        prefix, decoded: a window's tokens up to `prefix` run dense, those up to `decoded` after them as in decoding.
        block_of_site: name of the repeated block each site is in, None for a site outside.

    Args:
        model, texts, tokenizer, window, num_windows, selection, recalibrate, progress, resume: as for `calibrate`.
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
        num_windows: int = NUM_WINDOWS,
        selection: Selection = "threshold",
        recalibrate: bool | None = None,
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
                f"{type(model).__name__} has no packed linears to calibrate; call zigpass.prepare (quantized models),"
                " zigpass.quantize_ (float ones) or zigpass.load_gguf first"
            )
        if recalibrate:
            check_causal_model(model)
        chosen = choose_sites(readers, sites)
        self.model = model
        self.progress = progress
        self.selection = _known(selection)
        self.recalibrate = takes_cache(model) if recalibrate is None else recalibrate
        self.skip = SKIPPED_POSITIONS
        self.prefix = window // 2
        self.decoded = self.prefix + window // DECODED_SHARE
        self.all_sites = {site.name: site for site in readers}
        self.readers: Readers = {site: linears for site, linears in readers.items() if site.name in chosen}
        self.sites = {site.name: site for site in self.readers}
        self.num_bytes = {
            site.name: sum(linear.codes.numel() * linear.codes.element_size() for linear in linears)
            for site, linears in self.readers.items()
        }
        names = {linear: name for name, linear in find_linears(model)}
        self.block_of_site = {site.name: block_name(model, names[own[0]]) for site, own in self.readers.items()}
        num_held_out = min(NUM_HELD_OUT, max(1, num_windows // 4))  # a fifth of all, as `_split` takes
        spread = text_windows(texts, tokenizer, model, window, num_windows + num_held_out)
        self.windows, self.held_out = _split(spread)
        self.fingerprint = weight_fingerprint(model)
        self.text_hash = fingerprint_of(self.windows)
        self.state = StateFile(
            resume,
            {
                "weights": self.fingerprint,
                "device": device_of(model).type,
                "text": self.text_hash,
                "window": window,
                "decoded": self.decoded,
                "probes": fingerprint_of(self.probe_windows),
            },
        )
        self._scores: dict[str, dict[str, MagnitudeHistogram]] = {}
        self._weights: dict[str, dict[str, Tensor] | None] = {}
        self._gradients: dict[str, Tensor] | None = None
        self._comparison: DecodeLike | None = None
        self._decoding: DecodeLike | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that thresholds are placed on."""
        windows, length = self.windows.shape
        return windows * (self.decoded - self.prefix - 1 if self.recalibrate else length - self.skip)

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks that hold chosen sites, in the order of the module tree."""
        return list(dict.fromkeys(block for block in self.block_of_site.values() if block))

    @property
    def probe_windows(self) -> Tensor:
        """int64 [windows, T]: the few windows for measurements that run once per site."""
        return self.windows[_middles(len(self.windows), NUM_PROBES)]

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
            histograms = {name: MagnitudeHistogram() for name in self.sites}

            def count(site: Site, x: Tensor) -> None:
                count_scores(histograms[site.name], site, x[..., self.skip :, :], weights or {})

            decoder = without_head(self.model)
            with torch.inference_mode(), dense(self.model), observe_sites(self.readers, count):
                windows = self.windows[::DENSE_STEP] if self.recalibrate else self.windows
                for ids in track(windows, "calibrating", show=self.progress):
                    decoder(ids.unsqueeze(0).to(device_of(self.model)), use_cache=False)
            _raise_unused([name for name, histogram in histograms.items() if not histogram.total])
            self._scores[key] = histograms
        return self._scores[key]

    def squared_gradients(self) -> dict[str, Tensor]:
        """Mean squared gradient of every column, by site."""
        if self._gradients is None:
            with dense(self.model):
                self._gradients = squared_gradients(
                    self.model, self.readers, self.probe_windows, self.skip, blocks=self.blocks, progress=self.progress
                )
        return self._gradients

    def with_selection(self, selection: Selection) -> Calibration:
        """The same measurements, for thresholds of another kind."""
        other = copy.copy(self)
        other.selection = _known(selection)
        return other

    def threshold(self, rule: Rule, name: str, sparsity: float) -> Tensor:
        """The threshold of one site that gives a sparsity in the dense model."""
        weights = (self.weights_of(rule) or {}).get(name)
        return place(sparsity, self.scores_of(rule)[name]).threshold(sparsity, weights).threshold

    def thresholds_for(self, rule: Rule, sparsity: Mapping[str, float]) -> dict[str, SiteThreshold]:
        """Thresholds, by site, that give these sparsities: as the model decodes when `recalibrate` is set, else dense.

        Raises:
            ZigpassError: activations that are not finite, or a site that the model never uses.
        """
        if self.selection == "top_k":
            return {name: place_count(share, self.sites[name].features) for name, share in sparsity.items()}
        placed = self._placed_sparsely(rule, sparsity) if self.recalibrate else self._placed(rule, sparsity)
        weights = self.weights_of(rule) or {}
        return {name: placed[name].threshold(share, weights.get(name)) for name, share in sparsity.items()}

    def _placed(self, rule: Rule, sparsity: Mapping[str, float]) -> dict[str, Placed]:
        scores = self.scores_of(rule)
        return {name: place(share, scores[name]) for name, share in sparsity.items()}

    def _placed_sparsely(self, rule: Rule, sparsity: Mapping[str, float]) -> dict[str, Placed]:
        """Goes on where an earlier run with the same state stopped."""
        name = sparsity_fingerprint(sparsity)
        found = self.state.keep(f"placed {rule.name}", name, lambda: self._place_sparsely(rule, sparsity))
        return {name: Placed(*placed) for name, placed in found.items()}

    def _place_sparsely(self, rule: Rule, sparsity: Mapping[str, float]) -> dict[str, Placed]:
        if self._decoding is None:
            self._decoding = DecodeLike(self.model, self.windows[:, : self.decoded], self.prefix, reference=False)
        with kept_thresholds(self.model):
            set_thresholds(self.all_sites, {})
            found = place_sparsely(self._decoding, self.readers, sparsity, self.weights_of(rule) or {})
        _raise_unused([name for name in sparsity if name not in found])
        trim_heap()
        return found

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
        thresholds = {name: site.threshold for name, site in self.thresholds_for(rule, sparsity).items()}
        stage = f"KL on {fingerprint_of(self.held_out)}"
        kl = self.state.keep(stage, thresholds_fingerprint(thresholds), lambda: self._held_out_kl(thresholds))
        return float(kl)

    def _held_out_kl(self, thresholds: Mapping[str, Tensor]) -> float:
        if self._comparison is None:
            self._comparison = DecodeLike(self.model, self.held_out, self.prefix)
        with kept_thresholds(self.model):
            set_thresholds(self.all_sites, thresholds)
            return float(self._comparison.kl(self._comparison.run()).mean())


def _known(selection: Selection) -> Selection:
    if selection not in SELECTIONS:
        raise ZigpassError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")
    return selection


def _raise_unused(names: Sequence[str]) -> None:
    if names:
        raise ZigpassError(f"the model never used these sites on the calibration text: {', '.join(names)}")


def _split(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows to count in and windows to compare on, both spread over the text; the second may be empty."""
    held_out = min(NUM_HELD_OUT, max(1, len(windows) // 5), len(windows) - 1)
    chosen = _middles(len(windows), held_out)
    rest = [index for index in range(len(windows)) if index not in chosen]
    return windows[rest], windows[chosen]


def _middles(count: int, parts: int) -> list[int]:
    """Indices in the middle of equal parts of a list, so that a text whose subject changes is represented.

    Never its ends, where books have title pages and licences.
    """
    parts = min(parts, count)
    return sorted({int((part + 0.5) * count / parts) for part in range(parts)})
