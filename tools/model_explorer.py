"""The graphs of an inspection for Model Explorer, and an overlay that colours their nodes by sparsity.

zigpass inspect MODEL --sparsity 0.5 --model-explorer folder
model-explorer folder/graphs.json          (then Node data > upload folder/sparsity.json)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zigpass.graph_text import Line
from zigpass.inspection import Region
from zigpass.site_profile import SiteProfile
from zigpass.tools.inspect_data import Inspected

GRADIENT = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#4c9a2a"}]
_STATEMENT = re.compile(r"^\w+(: (?P<type>.+?))? = (?P<call>.*)$")


def write_model_explorer(inspected: Inspected, folder: Path) -> None:
    """Write `graphs.json`, every graph as captured and as rewritten, and `sparsity.json`, node data for them."""
    steps = inspected.inspection.steps
    graphs, overlay = [], {}
    for number in dict.fromkeys(step.graph for step in steps):
        own = [step for step in steps if step.graph == number]
        regions = [region for step in own for region in step.regions]
        for side, lines in (("captured", own[0].before), ("rewritten", own[-1].after)):
            name = f"graph {number}, {side}"
            graphs.append(
                {"id": name, "nodes": nodes(lines, [(r, r.before if side == "captured" else r.after) for r in regions])}
            )
            overlay[name] = {"results": sparsity_of(lines, inspected.sites), "gradient": GRADIENT}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graphs.json").write_text(json.dumps({"label": inspected.title, "graphs": graphs}), encoding="utf-8")
    (folder / "sparsity.json").write_text(json.dumps(overlay), encoding="utf-8")


def nodes(lines: Sequence[Line], regions: Sequence[tuple[Region, tuple[str, ...]]]) -> list[dict[str, Any]]:
    """The nodes of a graph: label is the operation, the namespace is where it is in the model.

    The inputs, such as the tensors of a key-value cache, have a namespace of their own.
    """
    owner = {node: region for region, own in reversed(list(regions)) for node in own}
    known: set[str] = set()
    found = []
    for line in lines:
        parts = _STATEMENT.match(line.text)
        call = parts["call"] if parts else line.text.removeprefix("return ")
        attributes = {"code": line.text, "type": (parts["type"] or "") if parts else ""}
        if line.node in owner:
            region = owner[line.node]
            attributes |= {"zigpass": region.kind, "linears": ", ".join(region.modules), "refused": region.reason}
        sources = [name for name in dict.fromkeys(re.findall(r"\w+", call)) if name in known]
        found.append(
            {
                "id": line.node,
                "label": label(call) if parts else "output",
                "namespace": "inputs" if call == "input" else line.module.replace(".", "/"),
                "attrs": [{"key": key, "value": value} for key, value in attributes.items() if value],
                "incomingEdges": [
                    {"sourceNodeId": name, "sourceNodeOutputId": "0", "targetNodeInputId": str(index)}
                    for index, name in enumerate(sources)
                ],
            }
        )
        known.add(line.node)
    return found


def label(call: str) -> str:
    """ "zigpass.gated_mlp(...)" -> "zigpass.gated_mlp"; an expression of operators stays as it is."""
    return call.partition("(")[0] if re.match(r"^[\w.]+\(", call) else call


def sparsity_of(lines: Sequence[Line], sites: Sequence[SiteProfile]) -> dict[str, dict[str, float]]:
    """Realized sparsity of every node that applies a threshold; the mean over all entries where it applies two."""
    found = {}
    for line in lines:
        words = set(re.split(r"[(), \[\]]+", line.text))
        own = [site for site in sites if words & _spellings(site, line)]
        if own:
            weight = sum(site.features for site in own)
            found[line.node] = {"value": sum(site.realized_sparsity * site.features for site in own) / weight}
    return found


def _spellings(site: SiteProfile, line: Line) -> set[str]:
    """How a line may name a site's threshold: whole, or relative to the part of the model that both are in."""
    parent, _, leaf = site.name.rpartition(".")
    near = line.module == parent or line.module.startswith(f"{parent}.")
    return {f"{site.name}.threshold", *([f"{leaf}.threshold"] if near else [])}
