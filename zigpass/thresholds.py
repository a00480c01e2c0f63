"""The thresholds of a model's sites, and the small file they travel in."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zigpass.runtime import ZigpassError
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.reference import COUNT_DTYPE

from .fingerprint import weight_fingerprint
from .sites import find_sites

FILE_VERSION: Final = 1
METADATA_KEY: Final = "zigpass_thresholds"


@dataclasses.dataclass(frozen=True)
class SiteThreshold:
    """What calibration found for one site.

    Attributes:
        threshold: float32, 1 or K entries; or int32, one entry, how many of the largest are read.
        target_sparsity: share of entries that should fall below it.
        realized_sparsity: share that did, on the calibration text.
    """

    threshold: Tensor
    target_sparsity: float
    realized_sparsity: float


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds of every site of one model, with where they came from.

    Attributes:
        sites: by site name.
        target_sparsity: share of the weight bytes of these sites that should not be read.
        rule: how entries are scored; a name in `zigpass.rules.RULES`.
        allocation: how the target is spread over the sites; a name in `zigpass.allocations.ALLOCATIONS`. "uniform" also
            where "measured" was asked for and gave way to it.
        model_id: name or path of the model, for people.
        fingerprint: hash of its packed weights, for checks.
        text_hash: hash of the calibration tokens.
        num_tokens: tokens that were counted.
    """

    sites: dict[str, SiteThreshold]
    target_sparsity: float
    rule: str
    allocation: str
    model_id: str
    fingerprint: str
    text_hash: str
    num_tokens: int

    def apply(self, model: nn.Module) -> None:
        """Set the thresholds of a model's sites. Nothing is compiled again when they had as many entries before.

        Raises:
            ZigpassError: they are for another model; every site that does not fit is named and none is changed.
        """
        self.check(model)
        for name, site in find_sites(model).items():
            site.set_threshold(self.sites[name].threshold, self.sites[name].target_sparsity)

    def check(self, model: nn.Module) -> None:
        """Raise `ZigpassError`, with every site that does not fit, unless these thresholds are for this model."""
        sites = find_sites(model)
        failures = [f"{name}: the model has no such site" for name in self.sites if name not in sites]
        failures += [f"{name}: the file has no threshold for it" for name in sites if name not in self.sites]
        for name in self.sites.keys() & sites.keys():
            entries, features = self.sites[name].threshold.numel(), sites[name].features
            if entries not in (1, features):
                failures.append(f"{name}: {entries} thresholds for {features} features")
        if not failures and weight_fingerprint(model) != self.fingerprint:
            failures.append("the weights have another fingerprint (another quantization or checkpoint)")
        raise_collected(failures, f"these thresholds, made for {self.model_id!r}, do not fit the model; calibrate it:")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; what is not a tensor is JSON in its metadata.

        Raises:
            ZigpassError: the file cannot be written.
        """
        document = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "sites"
        }
        document["version"] = FILE_VERSION
        document["sites"] = {
            name: {"target_sparsity": site.target_sparsity, "realized_sparsity": site.realized_sparsity}
            for name, site in self.sites.items()
        }
        tensors = {name: site.threshold.contiguous() for name, site in self.sites.items()}
        temporary = Path(f"{os.fspath(path)}.part")  # so that a broken write leaves no file under the final name
        try:
            save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(document)})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise ZigpassError(f"{os.fspath(path)}: cannot write the thresholds ({error})") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Thresholds:
        """Read what `save` wrote.

        Raises:
            ZigpassError: missing, cut short, not a thresholds file, or a version this zigpass does not know.
        """
        path = Path(path)
        if not path.is_file():
            raise ZigpassError(f"{path}: no such file")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (SafetensorError, OSError) as error:
            raise ZigpassError(f"{path}: truncated or not a safetensors file ({error})") from error
        if METADATA_KEY not in metadata:
            raise ZigpassError(f"{path}: a safetensors file, but not one of zigpass thresholds")
        return _from_document(path, json.loads(metadata[METADATA_KEY]), tensors)


def _from_document(path: Path, document: dict[str, Any], tensors: dict[str, Tensor]) -> Thresholds:
    version = document.pop("version", None)
    if version != FILE_VERSION:
        raise ZigpassError(f"{path}: thresholds file version {version}, this zigpass reads version {FILE_VERSION}")
    sites = document.pop("sites")
    if sites.keys() != tensors.keys():
        raise ZigpassError(f"{path}: damaged, its tensors and its site list differ")
    dtypes = (torch.float32, COUNT_DTYPE)
    bad = [name for name, tensor in tensors.items() if tensor.dtype not in dtypes or tensor.dim() != 1]
    raise_collected(bad, f"{path}: damaged, these thresholds are not vectors of {dtypes}:")
    return Thresholds({name: SiteThreshold(tensors[name], **sites[name]) for name in sites}, **document)
