"""What the file of a packed model says about its tensors: which linears, which layouts, which thresholds are shared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from zigpass.runtime import Layout, ZigpassError
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.layout import LAYOUT_VERSION

from .sites import SITE_KINDS

FILE_VERSION: Final = 1
METADATA_KEY: Final = "zigpass"
CONFIG_NAME: Final = "config.json"
QUANT_METHOD: Final = "zigpass"
SITE_PREFIX: Final = "zigpass.site."
"""Tensors of site i are called SITE_PREFIX + i + "." + their name: once, however many linears read the site."""
PACKED_NAMES: Final = ("codes", "scale", "zero", "perm")
"""The tensors of a packed linear in the order the ops take them."""


@dataclasses.dataclass(frozen=True)
class SavedLinear:
    """One packed linear.

    Attributes:
        layout: `Layout.spec`.
        site: index into the sites, or None.
        bias: whether it has one.
        also: other names of the same module.
    """

    layout: str
    site: int | None
    bias: bool
    also: list[str]

    def tensor_names(self) -> list[str]:
        """Names of its tensors, below its own."""
        return [*PACKED_NAMES[: Layout.parse(self.layout).num_tensors], *["bias"] * self.bias]


@dataclasses.dataclass(frozen=True)
class SavedSite:
    """One site: see `Site`."""

    name: str
    kind: str
    features: int
    tensors: list[str]
    target_sparsity: float | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Attributes:
    linears: by qualified name.
    sites: in the order of the indices that linears use.
    shared: other name -> stored name, for parameters and buffers with more than one name (tied embeddings).
    """

    linears: dict[str, SavedLinear]
    sites: list[SavedSite]
    shared: dict[str, str]

    def to_json(self) -> str:
        document = {"version": FILE_VERSION, "layout_version": LAYOUT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document)

    @staticmethod
    def from_metadata(path: Path, metadata: dict[str, str] | None) -> Manifest:
        """Read what `to_json` wrote into the file's metadata.

        Raises:
            ZigpassError: not a file of zigpass, another version, or a damaged description.
        """
        text = (metadata or {}).get(METADATA_KEY)
        if text is None:
            raise ZigpassError(f"{path}: a safetensors file, but not of a model saved by zigpass.save_pretrained")
        try:
            document: dict[str, Any] = json.loads(text)
            version = document.get("version")
            if version != FILE_VERSION:
                raise ZigpassError(f"{path}: file version {version}, this zigpass reads version {FILE_VERSION}")
            manifest = Manifest(
                {name: SavedLinear(**linear) for name, linear in document["linears"].items()},
                [SavedSite(**site) for site in document["sites"]],
                dict(document["shared"]),
            )
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ZigpassError(f"{path}: its description of the packed model is damaged ({error!r})") from error
        raise_collected(manifest._problems(), f"{path}: its description of the packed model is damaged:")
        return manifest

    def _problems(self) -> list[str]:
        problems = [
            f"site {index}: unknown kind {site.kind!r}"
            for index, site in enumerate(self.sites)
            if site.kind not in SITE_KINDS
        ]
        problems += [
            f"site {index}: target_sparsity is {site.target_sparsity!r}"
            for index, site in enumerate(self.sites)
            if site.target_sparsity is not None and not _is_share(site.target_sparsity)
        ]
        for name, linear in self.linears.items():
            try:
                Layout.parse(linear.layout)
            except ZigpassError as error:
                problems.append(f"{name}: {error}")
            if linear.site is not None and not 0 <= linear.site < len(self.sites):
                problems.append(f"{name}: reads site {linear.site} of {len(self.sites)}")
        return problems


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1
