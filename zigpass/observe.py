"""Looking at the activations that reach the sites of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from .linear import ZigzagLinear, find_linears
from .sites import Site, find_sites

Readers = dict[Site, list[ZigzagLinear]]
"""The linears that read each site, in the order of the module tree."""


def site_readers(model: nn.Module) -> Readers:
    """The linears that read each site."""
    readers: Readers = {}
    for _, linear in find_linears(model):
        if linear.site is not None:
            readers.setdefault(linear.site, []).append(linear)
    return readers


@contextmanager
def observe_sites(readers: Readers, observe: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Call `observe(site, x)` once for every activation that reaches a site while the context is open."""
    with ExitStack() as stack:
        for site, linears in readers.items():

            def hook(module: nn.Module, args: tuple[Tensor, ...], site: Site = site) -> None:
                observe(site, args[0])

            stack.callback(linears[0].register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def sparse_rows(model: nn.Module) -> Iterator[None]:
    """Apply thresholds to every row, also where the ops would run dense: what decoding decides, many tokens at once."""
    sites = find_sites(model).values()
    for site in sites:
        site.mask_rows = True
    try:
        yield
    finally:
        for site in sites:
            site.mask_rows = False


@contextmanager
def kept_thresholds(model: nn.Module) -> Iterator[None]:
    """Put every threshold back as it was when the context closes, also after an error or Ctrl-C."""
    kept = {site: site.threshold.clone() for site in find_sites(model).values()}
    try:
        yield
    finally:
        for site, threshold in kept.items():
            site.set_threshold(threshold)


def set_thresholds(sites: Mapping[str, Site], thresholds: Mapping[str, Tensor]) -> None:
    """Set the thresholds given by name; a site without one becomes dense."""
    for name, site in sites.items():
        site.set_threshold(thresholds.get(name, torch.zeros(1)))


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def without_head(model: nn.Module) -> nn.Module:
    """The decoder without its output head, where the model tells them apart."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    return decoder if isinstance(decoder, nn.Module) else model
