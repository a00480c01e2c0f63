"""An inspection as plain lists, dicts, strings and numbers: the JSON file, and what the HTML report shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from zigpass.explain_report import Report
from zigpass.graph_text import Line
from zigpass.inspection import Inspection, PassStep, Region
from zigpass.site_profile import SiteProfile
from zigpass.tools.provenance import provenance

FORMAT_VERSION = 1
OUTSIDE = "outside of all blocks"


@dataclasses.dataclass(frozen=True)
class Inspected:
    """All that a report shows.

    Attributes:
        title: of the model.
        inspection: passes and linears.
        sites: activations of every site that was reached; empty where nothing was run.
        profiled_on: the text or call they come from.
        bandwidth: bytes per second that this device reads; None where it was not measured.
    """

    title: str
    inspection: Inspection
    sites: list[SiteProfile]
    profiled_on: str
    bandwidth: float | None

    def to_dict(self) -> dict[str, Any]:
        report, steps = self.inspection.report, self.inspection.steps
        return {
            "version": FORMAT_VERSION,
            "title": self.title,
            "machine": provenance(),
            "summary": report.summary(),
            "bound": bound(report, self.bandwidth),
            "passes": [_step(step) for step in steps],
            "linears": [row.to_dict() for row in report.rows],
            "near_misses": [
                {"kind": miss.kind, "modules": list(miss.modules), "reason": miss.reason} for miss in report.near_misses
            ],
            "graph_breaks": list(report.graph_breaks),
            "blocks": blocks(steps),
            "sites": [dataclasses.asdict(site) for site in self.sites],
            "profiled_on": self.profiled_on,
        }


def bound(report: Report, bandwidth: float | None) -> dict[str, float | None]:
    """Bytes that a decoded token reads of all linears, and the tokens per second that reading them allows.

    The float linears are read either way. Activations, caches and arithmetic come on top.
    """
    dense = report.packed_bytes + report.float_bytes
    sparse = None if report.active_bytes is None else report.active_bytes + report.float_bytes

    def speed(num_bytes: int | None) -> float | None:
        return bandwidth / num_bytes if bandwidth and num_bytes else None

    return {
        "bandwidth": bandwidth,
        "dense_bytes": dense,
        "sparse_bytes": sparse,
        "dense_tokens_per_second": speed(dense),
        "sparse_tokens_per_second": speed(sparse),
    }


def _step(step: PassStep) -> dict[str, Any]:
    return {
        "number": step.number,
        "graph": step.graph,
        "name": step.name,
        "summary": step.summary,
        "count": step.count,
        "milliseconds": step.seconds * 1e3,
        "nodes_before": len(step.before),
        "nodes_after": len(step.after),
        "near_misses": [miss.reason for miss in step.near_misses],
        "diff": step.diff(),
    }


def blocks(steps: Sequence[PassStep]) -> list[dict[str, Any]]:
    """Every block of every graph, as captured and as rewritten; each line says which region it belongs to."""
    found = []
    graphs = dict.fromkeys(step.graph for step in steps)
    for graph in graphs:
        own = [step for step in steps if step.graph == graph]
        regions = [region for step in own for region in step.regions]
        before, after = own[0].before, own[-1].after
        kept = {line.node for line in before} & {line.node for line in after}
        names = dict.fromkeys(line.block for line in before)
        for name in names:
            inside = [region for region in regions if _touches(region, name, before, after)]
            label = name or OUTSIDE
            found.append(
                {
                    "name": label if len(graphs) == 1 else f"graph {graph}: {label}",
                    "regions": [
                        {"kind": region.kind, "modules": list(region.modules), "reason": region.reason}
                        for region in inside
                    ],
                    "before": list(_lines(before, name, [region.before for region in inside], kept)),
                    "after": list(_lines(after, name, [region.after for region in inside], kept)),
                }
            )
    return found


def _touches(region: Region, block: str, before: Sequence[Line], after: Sequence[Line]) -> bool:
    nodes = {*region.before, *region.after}
    return any(line.node in nodes and line.block == block for line in (*before, *after))


def _lines(
    lines: Sequence[Line], block: str, regions: Sequence[tuple[str, ...]], kept: set[str]
) -> Iterable[dict[str, Any]]:
    owner = {node: index for index, nodes in reversed(list(enumerate(regions))) for node in nodes}
    for line in lines:
        if line.block == block:
            yield {
                "text": line.text,
                "module": line.module,
                "region": owner.get(line.node),
                "changed": line.node not in kept,
            }
