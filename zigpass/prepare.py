"""`prepare`: relay the linears of an already quantized model, in place, bit for bit."""

from __future__ import annotations

import dataclasses
import logging
import types
from collections import Counter
from collections.abc import Callable

from torch import nn

from zigpass.runtime import ZigpassError, pack
from zigpass.runtime.errors import raise_collected

from .formats.recognizer import Recognizer
from .formats.registry import find_recognizer
from .formats.verify import check_recovered
from .linear import ZigzagLinear, find_linears
from .obstacles import find_obstacle
from .progress import track
from .replace import SiteRegistry, replace_module

logger = logging.getLogger("zigpass.prepare")

FilterFn = Callable[[nn.Module, str], bool]

NOT_QUANTIZED = "not quantized; call zigpass.quantize_"
NOT_KNOWN = "not a representation that zigpass knows; it stays as it is"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What `survey` says about one linear.

    Attributes:
        name: its qualified name.
        representation: the recognizer's name, or the class of a linear that none recognizes.
        reason: why `prepare` does not take it; None when it does.
        recognized: some recognizer knows it, so that a reason is something to mend.
    """

    name: str
    representation: str
    reason: str | None
    recognized: bool


def survey(model: nn.Module) -> list[Finding]:
    """Every linear that is not packed yet, and whether `prepare` would take it. Changes nothing, reads no weights."""
    modules = dict(model.named_modules())
    findings = []
    for name, module in modules.items():
        recognizer = find_recognizer(module)
        if recognizer is not None:
            findings.append(Finding(name, recognizer.name, _refusal(recognizer, module, name, modules), True))
        elif isinstance(module, nn.Linear):
            findings.append(Finding(name, type(module).__name__, NOT_QUANTIZED, False))
        elif _looks_linear(module) and not isinstance(module, ZigzagLinear) and not hasattr(module, "base_layer"):
            findings.append(Finding(name, type(module).__qualname__, NOT_KNOWN, False))
    return findings


def prepare(model: nn.Module, *, progress: bool = True, filter_fn: FilterFn | None = None) -> nn.Module:
    """Relay every quantized linear of a model into the zigzag layout, in place and layer by layer.

    Codes and scales are moved, never quantized again: each layer is compared with its own library's dequantization
    before it is replaced, and freed then. What can be checked without reading weights is checked for all layers
    first, so on such an error the model is as it was. Linears that are not quantized are left alone and listed.

    Args:
        model: quantized with torchao, GPTQ, AWQ, HQQ or compressed-tensors; `formats.support_table` lists the forms.
        progress: show a progress bar.
        filter_fn: called with (module, qualified name) for each quantized linear; False leaves it as it is.

    Returns:
        The same model.

    Raises:
        ZigpassError: one error for all recognized layers that cannot be taken, each with its reason; nothing to
            prepare; or a layer whose codes do not give the numbers of its own library, with name and numbers.
    """
    findings = survey(model)
    chosen = [
        finding
        for finding in findings
        if finding.recognized and (filter_fn is None or filter_fn(model.get_submodule(finding.name), finding.name))
    ]
    if not chosen:
        _check_already_done(model, findings)
        return model
    raise_collected(
        (f"{found.name}: {found.representation}: {found.reason}" for found in chosen if found.reason is not None),
        "these layers cannot be prepared; mend them or leave them out with filter_fn:",
    )
    if "" in (found.name for found in chosen):
        raise ZigpassError("the model is itself one linear, which cannot be replaced in place; wrap it in a module")
    aliases = _aliases(model)
    sites = SiteRegistry(model)
    recognizers = {}
    for found in track(chosen, "preparing", show=progress):
        recognizer = find_recognizer(model.get_submodule(found.name))
        assert recognizer is not None
        _convert(model, recognizer, aliases[found.name], sites)
        recognizers[recognizer.name] = recognizer
    for recognizer in recognizers.values():
        if not any(recognizer.recognizes(module) for module in model.modules()):
            recognizer.leave(model)
    _report_rest(findings, {found.name for found in chosen})
    return model


def _convert(model: nn.Module, recognizer: Recognizer, names: list[str], sites: SiteRegistry) -> None:
    module = model.get_submodule(names[0])
    try:
        recovered = recognizer.recover(module)
        check_recovered(recognizer, recovered.weight, recognizer.dequantize(module))
        packed = pack(recovered.weight)
    except ZigpassError as error:
        done = sum(1 for _ in find_linears(model))
        raise ZigpassError(
            f"{names[0]}: {error}. {done} layers before it are packed already; load the model again, and leave this"
            " layer out with filter_fn if you want the rest"
        ) from error
    site = None if _is_output_head(model, module, names[0]) else sites.site_for(names[0], packed.layout.k)
    new = ZigzagLinear(packed, recovered.bias, site)
    for name in names:
        replace_module(model, name, new)
    _drop_own_methods(module)


def _drop_own_methods(module: nn.Module) -> None:
    """Libraries hang bound methods on a linear (torchao its extra_repr), cycles that would keep its weight alive."""
    for name, value in list(vars(module).items()):
        if isinstance(value, types.MethodType) and value.__self__ is module:
            delattr(module, name)


def _refusal(recognizer: Recognizer, module: nn.Module, name: str, modules: dict[str, nn.Module]) -> str | None:
    return find_obstacle(module, name, modules) or recognizer.refusal(module)


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """All names of each module, by its first name; a module used in two places stays one."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {group[0]: group for group in names.values()}


def _is_output_head(model: nn.Module, module: nn.Module, name: str) -> bool:
    get_head = getattr(model, "get_output_embeddings", None)
    return name.rpartition(".")[2] == "lm_head" or (callable(get_head) and get_head() is module)


def _looks_linear(module: nn.Module) -> bool:
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def _check_already_done(model: nn.Module, findings: list[Finding]) -> None:
    """Nothing was chosen: that is an error unless the model is packed already."""
    packed = sum(1 for _ in find_linears(model))
    if packed:
        logger.info("%d linears are packed already, nothing to prepare", packed)
        return
    if not findings:
        raise ZigpassError(f"{type(model).__name__} has no linears")
    kinds = Counter((found.representation, found.reason) for found in findings)
    raise_collected(
        (f"{count} {kind}: {reason}" for (kind, reason), count in kinds.items() if reason is not None),
        f"{type(model).__name__} has no quantized linears to prepare; its linears are:",
    )
    raise ZigpassError(f"filter_fn leaves none of the {len(findings)} linears of {type(model).__name__} to prepare")


def _report_rest(findings: list[Finding], done: set[str]) -> None:
    for found in findings:
        if not found.recognized:
            level = logging.INFO if found.reason == NOT_QUANTIZED else logging.WARNING
            logger.log(level, "%s (%s): %s", found.name, found.representation, found.reason)
        elif found.name not in done:
            logger.info("%s (%s): left as it is by filter_fn", found.name, found.representation)
