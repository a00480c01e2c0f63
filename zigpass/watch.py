"""`watch_sparsity`: how many weight bytes a model really leaves unread on the text at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from zigpass.runtime import ZigpassError
from zigpass.runtime.reference import is_decode

from .observe import observe_sites, site_readers
from .sites import Site
from .thresholds import Thresholds


class SparsityWatch:
    """Counts of what `watch_sparsity` saw so far.

    Attributes:
        num_tokens: decoded tokens that were seen, per site; sites that never ran have none.
    """

    def __init__(self, num_bytes: dict[str, int]) -> None:
        self._num_bytes = num_bytes
        self._inactive: dict[str, int] = {}
        self._entries: dict[str, int] = {}
        self.num_tokens: dict[str, int] = {}

    def add(self, site: Site, x: Tensor) -> None:
        """Count one activation; more rows than one run dense and are left out."""
        if not is_decode(x):
            return
        name = site.name
        self._inactive[name] = self._inactive.get(name, 0) + int(site.inactive(x).sum())
        self._entries[name] = self._entries.get(name, 0) + x.numel()
        self.num_tokens[name] = self.num_tokens.get(name, 0) + 1

    @property
    def sites(self) -> dict[str, float]:
        """Share of entries that were not read, by site name."""
        return {name: self._inactive[name] / self._entries[name] for name in self._entries}

    @property
    def total(self) -> float:
        """Share of the code bytes that were not read, over the sites that ran.

        Raises:
            ZigpassError: no token was decoded.
        """
        sites = self.sites
        if not sites:
            raise ZigpassError("no decoded token was seen; run the model eagerly, one token at a time, while watching")
        return sum(self._num_bytes[name] * share for name, share in sites.items()) / sum(
            self._num_bytes[name] for name in sites
        )

    def drift(self, thresholds: Thresholds) -> dict[str, float]:
        """Realized minus target sparsity of every site that ran, by site name.

        A site far from 0 (0.05 and more over some hundred tokens) means that the text is unlike the calibration text.
        """
        return {name: share - thresholds.sites[name].target_sparsity for name, share in self.sites.items()}


@contextmanager
def watch_sparsity(model: nn.Module) -> Iterator[SparsityWatch]:
    """Count, while the context is open, which entries the decode steps of a model leave unread.

        with zigpass.watch_sparsity(model) as watch:
            zigpass.generate(model, prompt, max_new_tokens=200)
        print(watch.total, watch.drift(thresholds))

    It watches the model itself, so run it eagerly: a compiled model's graphs carry no counters and are not slowed down
    by this. Costs one comparison of every activation; nothing once the context is closed.

    Raises:
        ZigpassError: the model has no packed linears.
    """
    readers = site_readers(model)
    if not readers:
        raise ZigpassError(
            f"{type(model).__name__} has no packed linears to watch; call zigpass.prepare or zigpass.quantize_ first"
        )
    watch = SparsityWatch({site.name: sum(linear.codes.nbytes for linear in own) for site, own in readers.items()})
    with observe_sites(readers, watch.add):
        yield watch
