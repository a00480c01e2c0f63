"""`prepare`: relay the linears of an already quantized model, in place, bit for bit."""

from __future__ import annotations

import dataclasses
import logging
import types
from collections import Counter
from collections.abc import Callable

from torch import nn
from torch.fx import GraphModule

from zigpass.passes import Linear
from zigpass.runtime import ZigpassError, pack
from zigpass.runtime.errors import raise_collected
from zigpass.runtime.memory_errors import naming_out_of_memory

from .formats.recognizer import Recognizer
from .formats.registry import find_recognizer
from .formats.verify import check_recovered
from .graph_linears import GraphLinear, find_graph_linears, insert_graph_linears
from .linear import ZigzagLinear, find_linears
from .obstacles import find_obstacle
from .progress import track
from .replace import SiteRegistry, replace_module

logger = logging.getLogger("zigpass.prepare")

FilterFn = Callable[[nn.Module, str], bool]

PREPARE_ELSEWHERE = "free some, or call zigpass.prepare on the CPU and move the model"
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
        in_graph: where it is a call in a graph module, and not a module of its own.
    """

    name: str
    representation: str
    reason: str | None
    recognized: bool
    in_graph: Linear | None = None


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """What `survey` says about a linear, and the linear: a module of the model, or a call in a graph of it."""

    finding: Finding
    module: nn.Module | None
    graph: GraphModule | None = None
    call: GraphLinear | None = None


def survey(model: nn.Module) -> list[Finding]:
    """Every linear that is not packed yet, and whether `prepare` would take it. Changes nothing, reads no weights."""
    return [candidate.finding for candidate in _find_candidates(model)]


def _find_candidates(model: nn.Module) -> list[_Candidate]:
    modules = dict(model.named_modules())
    found = []
    for name, module in modules.items():
        recognizer = find_recognizer(module)
        if recognizer is not None:
            refusal = _refusal(recognizer, module, name, modules)
            found.append(_Candidate(Finding(name, recognizer.name, refusal, True), module))
        elif isinstance(module, nn.Linear):
            reason = find_obstacle(module, name, modules) or NOT_QUANTIZED
            found.append(_Candidate(Finding(name, type(module).__name__, reason, False), module))
        elif _looks_linear(module) and not isinstance(module, ZigzagLinear) and not hasattr(module, "base_layer"):
            found.append(_Candidate(Finding(name, type(module).__qualname__, NOT_KNOWN, False), module))
        if isinstance(module, GraphModule):
            found += [_in_graph(name, module, call, modules) for call in find_graph_linears(module)]
    return found


def _in_graph(prefix: str, graph: GraphModule, call: GraphLinear, modules: dict[str, nn.Module]) -> _Candidate:
    name = f"{prefix}.{call.name}" if prefix else call.name
    recognizer = None if call.module is None else find_recognizer(call.module)
    if call.module is None or recognizer is None:
        finding = Finding(name, call.representation, call.refusal or NOT_KNOWN, True, call.calls[0])
    else:
        refusal = _refusal(recognizer, call.module, name, modules)
        finding = Finding(name, recognizer.name, refusal, True, call.calls[0])
    return _Candidate(finding, call.module, graph, call)


def prepare(model: nn.Module, *, progress: bool = True, filter_fn: FilterFn | None = None) -> nn.Module:
    """Relay every quantized linear of a model into the zigzag layout, in place.

    Codes and scales are moved, never quantized again. Every layer is compared with its own library's dequantization
    before the first one is replaced, so on any error the model is as it was; then they are replaced one by one, and
    each is freed. The comparison makes a pass of its own: codes and scales are read twice, once for each pass.
    Linears that are not quantized are left alone and listed.

    Args:
        model: quantized with torchao, GPTQ, AWQ, HQQ or compressed-tensors, or a graph module with the dequantize
            calls of PT2E or torchao; `formats.support_table` lists the forms.
        progress: show progress bars.
        filter_fn: called with (module, qualified name) for each quantized linear; False leaves it as it is. For a
            linear that is a call in a graph the module computes what the call does.

    Returns:
        The same model.

    Raises:
        ZigpassError: one error for all recognized layers that cannot be taken, each with its reason; nothing to
            prepare; or all layers whose codes do not give the numbers of their own library, with name and numbers;
            or no memory for a layer: those before it stay packed, and a second call goes on with it.
    """
    candidates = _find_candidates(model)
    findings = [candidate.finding for candidate in candidates]
    chosen = [
        candidate
        for candidate in candidates
        if candidate.finding.recognized
        and (filter_fn is None or filter_fn(candidate.module or model, candidate.finding.name))
    ]
    if not chosen:
        _check_already_done(model, findings)
        return model
    refused = [candidate.finding for candidate in chosen if candidate.finding.reason is not None]
    raise_collected(
        (f"{found.name}: {found.representation}: {found.reason}" for found in refused),
        "these layers cannot be prepared; mend them or leave them out with filter_fn:",
    )
    names = [candidate.finding.name for candidate in chosen]
    if "" in names:
        raise ZigpassError("the model is itself one linear, which cannot be replaced in place; wrap it in a module")
    _verify(chosen, progress)
    _insert(chosen)
    del candidates, chosen  # so that each original is freed once it is replaced
    aliases = _aliases(model)
    sites = SiteRegistry(model)
    recognizers = {}
    for name in track(names, "preparing", show=progress):
        recognizer = find_recognizer(model.get_submodule(name))
        assert recognizer is not None
        try:
            with naming_out_of_memory("packing it", PREPARE_ELSEWHERE):
                _convert(model, recognizer, aliases[name], sites)
        except ZigpassError as error:
            raise ZigpassError(
                f"{name}: {error}; the layers before it are packed, prepare goes on from here"
            ) from error
        recognizers[recognizer.name] = recognizer
    for recognizer in recognizers.values():
        if not any(recognizer.recognizes(module) for module in model.modules()):
            recognizer.leave(model)
    _report_rest(findings, set(names))
    return model


def _verify(chosen: list[_Candidate], progress: bool) -> None:
    """Raise one error for all layers whose recovered weight is not what the module computes with."""
    found = [(item.finding.name, _difference(item.module)) for item in track(chosen, "comparing", show=progress)]
    raise_collected(
        (f"{name}: {difference}" for name, difference in found if difference is not None),
        "these layers do not hold what their library computes with, nothing is changed; leave them out with filter_fn"
        " if you want the rest:",
    )


def _difference(module: nn.Module | None) -> str | None:
    """How the weight that is recovered of a module differs from its own; None when it does not."""
    recognizer = None if module is None else find_recognizer(module)
    assert module is not None
    assert recognizer is not None
    try:
        with naming_out_of_memory("comparing it with its own library", PREPARE_ELSEWHERE):
            weight = recognizer.recover(module).weight
            check_recovered(recognizer, weight, recognizer.dequantize(module))
            weight.layout()
    except ZigpassError as error:
        return str(error)
    return None


def _insert(chosen: list[_Candidate]) -> None:
    """Make modules of the calls in graphs."""
    graphs = {id(candidate.graph): candidate.graph for candidate in chosen if candidate.graph is not None}
    for graph in graphs.values():
        calls = [candidate.call for candidate in chosen if candidate.graph is graph and candidate.call is not None]
        insert_graph_linears(graph, calls)


def _convert(model: nn.Module, recognizer: Recognizer, names: list[str], sites: SiteRegistry) -> None:
    module = model.get_submodule(names[0])
    recovered = recognizer.recover(module)
    packed = pack(recovered.weight)
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
