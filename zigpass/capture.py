"""Capture a model's graphs with Dynamo, leaving what the user compiled as it is."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import ShortenTraceback, Unsupported, UserError
from torch.fx import GraphModule

from zigpass import passes


@dataclasses.dataclass(frozen=True)
class CapturedGraph:
    """One graph and the tensor behind each of its inputs, by placeholder name."""

    gm: GraphModule
    tensors: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Capture:
    """The graphs of one call in the order they run, and why there is more than one."""

    graphs: list[CapturedGraph]
    breaks: list[str]


class _Captured(ShortenTraceback):  # type: ignore[misc]  # torch._dynamo is not type-checked here
    """Ends a compilation once the graph is known, before anything runs."""


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Capture:
    """The graphs Dynamo makes of `model(*args, **kwargs)`.

    When one graph holds the whole call, nothing is executed. A call with graph breaks has to be run to get at the
    later graphs: then it runs on copies of the arguments, so that a KV cache among them does not move, and Dynamo
    keeps an entry for every frame it compiled, once however often a model is captured.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile(model) wraps
    # Past its recompile limit Dynamo would run a frame as it is, and the report would miss what is in it.
    unlimited = torch._dynamo.config.patch(recompile_limit=1 << 20, accumulated_recompile_limit=1 << 20)
    with torch.no_grad(), unlimited:
        try:
            return Capture([_capture_whole(model, args, kwargs)], [])
        except (Unsupported, UserError) as error:  # the second where the path depends on a tensor's value
            first_break = _first_line(str(error))
        recorded = _capture_pieces(model, *copy.deepcopy((tuple(args), dict(kwargs))))
    return Capture(recorded.graphs, list(dict.fromkeys(recorded.breaks)) or [first_break])


def _capture_whole(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CapturedGraph:
    captured: list[CapturedGraph] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        captured.append(_keep(gm, example_inputs))
        raise _Captured(first_useful_frame=None)

    try:
        torch.compile(_call, backend=backend, fullgraph=True, dynamic=False)(model, tuple(args), dict(kwargs))
    except _Captured:
        return captured[0]
    return CapturedGraph(GraphModule({}, torch.fx.Graph()), {})  # a call without any tensor operation


_recorded: ContextVar[Capture] = ContextVar("_recorded")


def _capture_pieces(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
    """Run the call and record every graph as it runs: one graph may serve several layers, one after the other."""
    recorded = Capture([], [])
    token = _recorded.set(recorded)
    try:
        torch.compile(_call, backend=_recording_backend, dynamic=False)(model, args, kwargs)
    finally:
        _recorded.reset(token)
    return recorded


def _recording_backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """One function for all captures: what Dynamo has compiled with it for an earlier one is used again."""
    kept = passes.clone_graph_module(gm)
    reason = getattr(gm, "compile_subgraph_reason", None)
    reason = _describe_break(reason) if reason is not None and reason.graph_break else None

    def run(*inputs: Any) -> Any:
        recorded = _recorded.get(None)
        if recorded is not None:
            recorded.graphs.append(_keep(kept, inputs))
            recorded.breaks.extend([reason] if reason else [])
        return gm.forward(*inputs)

    return run


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*args, **kwargs)


def _keep(gm: GraphModule, example_inputs: Sequence[Any]) -> CapturedGraph:
    placeholders = gm.graph.find_nodes(op="placeholder")
    pairs = zip(placeholders, example_inputs, strict=True)
    return CapturedGraph(
        passes.clone_graph_module(gm), {node.name: value for node, value in pairs if isinstance(value, Tensor)}
    )


def _describe_break(reason: Any) -> str:
    where = next((frame for frame in reversed(reason.user_stack) if frame.filename != __file__), None)
    place = f" ({where.filename}:{where.lineno})" if where is not None else ""
    return _first_line(str(reason.reason)) + place


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "unknown reason")
