"""Sites: activations whose threshold is shared by all the weights that read them.

q, k and v read one activation, gate and up another. The linears of such a group hold the *same* `Site` module, so
there is one threshold tensor, a traced graph shows one placeholder for it, and fusing the group cannot mix thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import torch
from torch import Tensor, nn

from zigpass.runtime.errors import ZigpassError
from zigpass.runtime.reference import COUNT_DTYPE, inactive

SiteKind = Literal["attn_in", "attn_out", "mlp_in", "mlp_mid", "other"]
SITE_KINDS: Final[tuple[SiteKind, ...]] = ("attn_in", "attn_out", "mlp_in", "mlp_mid", "other")

KIND_OF_LEAF: Final[dict[str, SiteKind]] = {
    "q_proj": "attn_in",
    "k_proj": "attn_in",
    "v_proj": "attn_in",
    "qkv_proj": "attn_in",
    "query_key_value": "attn_in",
    "c_attn": "attn_in",
    "W_pack": "attn_in",
    "Wqkv": "attn_in",
    "q_a_proj": "attn_in",
    "kv_a_proj_with_mqa": "attn_in",
    "o_proj": "attn_out",
    "gate_proj": "mlp_in",
    "up_proj": "mlp_in",
    "gate_up_proj": "mlp_in",
    "c_fc": "mlp_in",
    "fc1": "mlp_in",
    "fc_in": "mlp_in",
    "dense_h_to_4h": "mlp_in",
    "down_proj": "mlp_mid",
    "fc2": "mlp_mid",
    "fc_out": "mlp_mid",
    "dense_4h_to_h": "mlp_mid",
}
"""Which activation a linear reads, by the last part of its name (Hugging Face convention).

A linear with another name gets a site of its own, which is always correct: it is only never fused with others.
"""
LAST_OF_BLOCK: Final = frozenset({"c_proj", "out_proj", "dense"})
"""Names that the last linear of an attention and of an MLP both go by; the name of the module around it decides."""
CROSS_ATTENTION: Final = frozenset({"encoder_attn", "cross_attn", "crossattention", "EncDecAttention"})
"""Attention to another sequence: its q reads one activation, its k and v another, whatever they are called."""


class Site(nn.Module):
    """The threshold of one activation.

    Attributes:
        name: where it is, such as "model.layers.3.mlp.mlp_in".
        kind: which of the four activations of a decoder layer it is.
        threshold: float32 buffer of 1 or K entries; input entries below it are not read when decoding. 0 is dense.
            Or an int32 buffer of one entry: how many entries, the largest, are read.
        mask_rows: apply the threshold to every row by zeroing entries, also where the ops would run dense. For
            measuring quality on many tokens at once; it gives what decoding token by token would give.
    """

    threshold: Tensor

    def __init__(self, name: str, kind: SiteKind, features: int) -> None:
        super().__init__()
        self.name = name
        self.kind: SiteKind = kind
        self.features = features
        self.mask_rows = False
        self._target: tuple[float, Tensor] | None = None
        self.register_buffer("threshold", torch.zeros(1, dtype=torch.float32))

    def set_threshold(self, threshold: float | Tensor, target_sparsity: float | None = None) -> None:
        """Replace the threshold, in place when dtype and number of entries stay the same (nothing recompiles then).

        Args:
            threshold: of 1 or K entries; an int32 tensor of one entry is a count of entries to read.
            target_sparsity: the share of entries that it was chosen for, where that is known.

        Raises:
            ZigpassError: not 1 or K entries, an entry that is negative or not finite, or a count beyond K.
        """
        is_count = isinstance(threshold, Tensor) and threshold.dtype == COUNT_DTYPE
        dtype = COUNT_DTYPE if is_count else torch.float32
        value = torch.as_tensor(threshold, dtype=dtype, device=self.threshold.device).reshape(-1)
        if is_count and not (value.numel() == 1 and 0 <= int(value) <= self.features):
            raise ZigpassError(f"{self.name}: a count of entries is one number up to {self.features}")
        if value.numel() not in (1, self.features):
            raise ZigpassError(f"{self.name}: a threshold has 1 or {self.features} entries, got {value.numel()}")
        if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
            raise ZigpassError(f"{self.name}: thresholds must be finite and not negative")
        if (value.shape, value.dtype) == (self.threshold.shape, self.threshold.dtype):
            self.threshold.copy_(value)
        else:
            self.threshold = value.clone()
        if target_sparsity is not None:
            self._target = (target_sparsity, value.clone())

    @property
    def target_sparsity(self) -> float | None:
        """The share of entries that the present threshold was chosen for; None when it was set by hand."""
        if self._target is None or not torch.equal(self._target[1].to(self.threshold.device), self.threshold):
            return None
        return self._target[0]

    def inactive(self, x: Tensor) -> Tensor:
        """Which entries of x [..., K] the present threshold leaves unread, bool of the same shape."""
        return inactive(x, self.threshold)

    def read_all_(self) -> None:
        """Set the threshold, in place, to one that leaves nothing unread."""
        self.threshold.fill_(self.features if self.threshold.dtype == COUNT_DTYPE else 0)

    def extra_repr(self) -> str:
        return f"{self.name!r}, kind={self.kind}"


def site_kind(linear_name: str) -> SiteKind:
    """The kind of activation the linear with this qualified name reads."""
    parent, _, leaf = linear_name.rpartition(".")
    around = parent.rpartition(".")[2]
    kind = KIND_OF_LEAF.get(leaf, "other")
    if around in CROSS_ATTENTION and kind == "attn_in":
        return "other"
    if leaf in LAST_OF_BLOCK:
        if "attn" in around.lower() or "attention" in around.lower():
            return "attn_out"
        return "mlp_mid" if "mlp" in around.lower() else "other"
    return kind


def site_name(linear_name: str) -> str:
    """The name of its site: siblings that read one activation get the same name."""
    parent, _, leaf = linear_name.rpartition(".")
    kind = site_kind(linear_name)
    own = leaf if kind == "other" else kind
    return f"{parent}.{own}" if parent else own


def find_sites(model: nn.Module) -> dict[str, Site]:
    """All sites of a model by name, in order of first use in the module tree."""
    sites: dict[str, Site] = {}
    for module in model.modules():
        if isinstance(module, Site):
            sites.setdefault(module.name, module)
    return sites


@contextmanager
def dense(model: nn.Module) -> Iterator[None]:
    """Read every weight while the context is open; thresholds are set aside in place, so nothing compiles again."""
    sites = find_sites(model).values()
    kept = [site.threshold.clone() for site in sites]
    for site in sites:
        site.read_all_()
    try:
        yield
    finally:
        for site, threshold in zip(sites, kept, strict=True):
            site.threshold.copy_(threshold)
