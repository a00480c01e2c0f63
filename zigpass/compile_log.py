"""What a compile leaves behind for people: log lines, and artifacts that tlparse shows.

TORCH_LOGS="zigpass"        one line per compile: what matched, sites, packed bytes, time
TORCH_LOGS="+zigpass"       every pass, every near miss, and the difference that each pass made to the graph
TORCH_TRACE=folder          the graph before and after, these differences and a report, for `tlparse folder`
"""

from __future__ import annotations

import json
import logging
from typing import Any

from torch._logging._internal import trace_log, trace_structured
from torch.fx import GraphModule

from zigpass.passes import Context

from .explain_report import plain_match
from .graph_text import as_code, source_names
from .inspection import StepRecorder
from .rewrite_graph import count_kinds, describe_kinds

log = logging.getLogger(__name__)


class CompileLog:
    """Watches one compile; costs nothing unless someone listens to DEBUG lines or a trace is written.

    Attributes:
        observe: to hand to `rewrite_graph`, or None.

    Args:
        gm: the graph, before the passes.
    """

    def __init__(self, gm: GraphModule) -> None:
        self.observe: StepRecorder | None = None
        if log.isEnabledFor(logging.DEBUG) or _is_traced():
            self.observe = StepRecorder()
            self.observe.names = source_names(gm)

    def rewritten(self, contexts: list[Context]) -> None:
        """Report on the passes, in detail and to the trace."""
        if self.observe is None:
            return
        for step in self.observe.steps:
            log.debug("graph %d, %s: %d in %.1f ms", step.graph, step.name, step.count, step.seconds * 1e3)
            for near_miss in step.near_misses:
                log.debug("near miss (%s): %s", near_miss.kind, near_miss.reason)
            if step.changed:
                log.debug("%s", "\n".join(step.diff()))
                _trace(f"zigpass_{step.name}_diff", "\n".join(step.diff()))
        for name, lines in (("before", self.observe.steps[0].before), ("after", self.observe.steps[-1].after)):
            _trace(f"zigpass_graph_{name}", "\n".join(as_code(lines)))
        _trace("zigpass_report", report_of(contexts), encoding="json")

    @staticmethod
    def compiled(contexts: list[Context], rewriting: float, inductor: float | None) -> None:
        """The one line.

        Args:
            rewriting: seconds in the passes.
            inductor: seconds in Inductor; None where it was not asked.
        """
        dense = sum(len(context.dense) for context in contexts)
        log.info(
            "matched %s; %d sites; %.2f MB packed weights%s; passes %.0f ms%s",
            describe_kinds(count_kinds(contexts)),
            len({name for context in contexts for match in context.matches for name in match.thresholds}),
            sum(context.packed_bytes for context in contexts) / 1e6,
            f"; {dense} packed linears run dense (more than one row, or an unknown number)" if dense else "",
            rewriting * 1e3,
            "" if inductor is None else f", Inductor {inductor:.1f} s",
        )


def report_of(contexts: list[Context]) -> dict[str, Any]:
    """What the passes found in a graph and its subgraphs, as JSON knows it."""
    return {
        "kinds": dict(count_kinds(contexts)),
        "packed_bytes": sum(context.packed_bytes for context in contexts),
        "passes": [
            {"name": name, "count": context.counts[name], "seconds": seconds}
            for context in contexts
            for name, seconds in context.seconds.items()
        ],
        "matches": [plain_match(match) for context in contexts for match in context.matches],
        "near_misses": [plain_match(near_miss) for context in contexts for near_miss in context.near_misses],
    }


def _is_traced() -> bool:
    """Whether torch writes a structured trace: what `trace_structured` asks too, but before the graph changes."""
    return bool(trace_log.handlers)


def _trace(name: str, payload: Any, encoding: str = "string") -> None:
    text = json.dumps(payload, indent=2) if encoding == "json" else payload
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=lambda: text)
