"""Options of the backend: its own, and Inductor's passed through."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Final

from zigpass.passes import OPTIONAL_PASSES

from .backend_error import BackendError
from .inductor_options import inductor_keys

INNER: Final = ("inductor", "eager")
MODES: Final = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclasses.dataclass(frozen=True)
class BackendOptions:
    """What `torch.compile(model, backend="zigpass", options={...})` understands.

    Attributes:
        inner: who compiles the rewritten graph: "inductor", or "eager" to run it as it is (for debugging).
        mode: as torch.compile's `mode`, which cannot be given together with `options`.
        require_match: raise instead of warning when a graph has linears and none of them is packed.
        passes: switch single passes off, such as {"fuse_qkv": False}.
        inductor: every other key, handed to Inductor as config patches. They come before what the backend asks for
            itself (`inductor_options`).
    """

    inner: str = "inductor"
    mode: str | None = None
    require_match: bool = False
    passes: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    inductor: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.inner not in INNER:
            raise BackendError(f"option inner must be one of {INNER}, got {self.inner!r}")
        if self.mode is not None and self.mode not in MODES:
            raise BackendError(f"mode must be one of {MODES}, got {self.mode!r}{_did_you_mean(str(self.mode), MODES)}")
        if not isinstance(self.require_match, bool):
            raise BackendError(f"option require_match must be True or False, got {self.require_match!r}")
        if not isinstance(self.passes, Mapping):
            raise BackendError(f'option passes must be a dict such as {{"fuse_qkv": False}}, got {self.passes!r}')
        for name, wanted in self.passes.items():
            if name not in OPTIONAL_PASSES:
                hint = _did_you_mean(str(name), OPTIONAL_PASSES)
                raise BackendError(f"option passes: {name!r} is not one of {OPTIONAL_PASSES}{hint}")
            if not isinstance(wanted, bool):
                raise BackendError(f"option passes: {name} must be True or False, got {wanted!r}")
        if self.inner == "eager" and (self.inductor or self.mode not in (None, "default")):
            given = [*self.inductor, *(["mode"] if self.mode not in (None, "default") else [])]
            raise BackendError(f'{", ".join(given)} configure Inductor, which inner="eager" does not use')

    @property
    def skip(self) -> frozenset[str]:
        """Names of the passes that are switched off."""
        return frozenset(name for name, wanted in self.passes.items() if not wanted)


OWN_OPTIONS: Final[tuple[str, ...]] = tuple(
    field.name for field in dataclasses.fields(BackendOptions) if field.name != "inductor"
)


def read_options(mode: str | None = None, options: Mapping[str, Any] | None = None) -> BackendOptions:
    """Sort the keys of `options` into our own and Inductor's.

    Raises:
        BackendError: an unknown key (the message names the nearest valid one) or a value out of range.
    """
    own: dict[str, Any] = {} if mode is None else {"mode": mode}
    inductor: dict[str, Any] = {}
    for given, value in (options or {}).items():
        key = given.replace("-", "_")
        if key in OWN_OPTIONS:
            own[key] = value
        elif key in (known := inductor_keys()):
            inductor[key] = value
        else:
            hint = _did_you_mean(key, OWN_OPTIONS) or _did_you_mean(key, known)
            raise BackendError(
                f"unknown option {given!r}{hint}; backend zigpass has {', '.join(OWN_OPTIONS)}"
                " and takes every key of torch._inductor.config"
            )
    return BackendOptions(**own, inductor=inductor)


def _did_you_mean(key: str, valid: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(key, valid, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
