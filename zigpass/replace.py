"""Putting packed linears into a model."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor, nn

from zigpass.runtime import pack

from .gate_up import GateUp, halves_of, holds_gate_and_up
from .linear import ZigzagLinear
from .sites import Site, find_sites, site_kind, site_name

_cut: WeakKeyDictionary[ZigzagLinear, GateUp] = WeakKeyDictionary()
"""What a linear was cut into, so that one with two places in the model stays one."""


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the module called `name` is; the old one is freed when nobody else holds it.

    A packed linear that holds gate and up is put there as two.
    """
    parent, _, leaf = name.rpartition(".")
    if isinstance(new, ZigzagLinear) and holds_gate_and_up(name, new.out_features):
        new = _cut_in_two(new)
    new.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), leaf, new)


def _cut_in_two(linear: ZigzagLinear) -> nn.Module:
    """Gate and up as linears of their own; the linear itself where its scales do not come apart."""
    if linear in _cut:
        return _cut[linear]
    halves = halves_of(linear.unpack())
    if halves is None:
        return linear
    biases: tuple[Tensor | None, ...] = (None, None) if linear.bias is None else linear.bias.chunk(2)
    parts = (
        ZigzagLinear(pack(half, linear.layout.band), None if bias is None else bias.clone(), linear.site)
        for half, bias in zip(halves, biases, strict=True)
    )
    _cut[linear] = GateUp(*parts)
    return _cut[linear]


class SiteRegistry:
    """Hands out one `Site` per activation, so that linears which read the same one share its threshold."""

    def __init__(self, model: nn.Module) -> None:
        self._sites = find_sites(model)

    def site_for(self, linear_name: str, features: int) -> Site:
        """The site that the linear of this name reads; created at the first call for it.

        A linear whose name says that it reads an activation which has another size gets a site of its own.
        """
        name, kind = site_name(linear_name), site_kind(linear_name)
        if name in self._sites and self._sites[name].features != features:
            name, kind = linear_name, "other"
        site = self._sites.get(name)
        if site is None or site.features != features:
            site = self._sites[name] = Site(name, kind, features)
        return site
