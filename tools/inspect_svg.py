"""A block before and after as one SVG drawing, laid out by Graphviz."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zigpass.runtime import ZigpassError

COLORS = ("#cfe2ff", "#d6efd8", "#fde2c4", "#e8d9f7", "#fbd5dc", "#d3eef0", "#efe9c1")
REFUSED = "#ffdf80"
"""Fill of what nearly matched."""
_NODE = re.compile(r"^(?P<name>\w+)(: (?P<type>[^=]+?))? = (?P<call>.*)$")


def write_svg(blocks: Sequence[dict[str, Any]], wanted: str | None, path: Path) -> None:
    """Draw one block of what `inspect_data.blocks` gives: captured on the left, rewritten on the right.

    Args:
        wanted: name of the block; None for the first with most matches and near misses.

    Raises:
        ZigpassError: no such block, or pydot or Graphviz' `dot` is not installed.
    """
    block = choose_block(blocks, wanted)
    try:
        import pydot
    except ImportError as error:
        raise ZigpassError("--svg needs pydot: pip install 'zigpass[inspect]'") from error
    if shutil.which("dot") is None:
        raise ZigpassError("--svg needs Graphviz' program dot (apt install graphviz, brew install graphviz)")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw(pydot, block).create(format="svg"))


def choose_block(blocks: Sequence[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    """The block of this name, or the first in which most was found."""
    if wanted is None:
        return max(blocks, key=lambda block: len(block["regions"]))
    found = next((block for block in blocks if block["name"] == wanted), None)
    if found is None:
        raise ZigpassError(f"no block {wanted!r}; the blocks are {', '.join(block['name'] for block in blocks)}")
    return found


def draw(pydot: Any, block: dict[str, Any]) -> Any:
    """The block as a pydot graph of two clusters; what comes from outside of the block is left out."""
    graph = pydot.Dot(graph_type="digraph", fontname="sans-serif", label=block["name"], labelloc="t")
    for side, title in (("before", "captured"), ("after", "rewritten")):
        cluster = pydot.Cluster(side, label=title, color="gray", fontname="sans-serif")
        known: set[str] = set()
        for line in block[side]:
            parts = _NODE.match(line["text"])
            if parts is None:  # the return statement
                continue
            cluster.add_node(_node(pydot, side, parts, line, block["regions"]))
            for name in dict.fromkeys(re.findall(r"\w+", parts["call"])):
                if name in known:
                    cluster.add_edge(pydot.Edge(f"{side}_{name}", f"{side}_{parts['name']}"))
            known.add(parts["name"])
        graph.add_subgraph(cluster)
    return graph


def _node(pydot: Any, side: str, parts: re.Match[str], line: dict[str, Any], regions: Sequence[dict[str, Any]]) -> Any:
    operation = re.sub(r"\(.*", "", parts["call"]) if "(" in parts["call"] else parts["call"]
    region = line["region"]
    fill = "white" if region is None else COLORS[region % len(COLORS)]
    if region is not None and regions[region]["reason"]:
        fill = REFUSED
    return pydot.Node(
        f"{side}_{parts['name']}",
        label="\n".join(filter(None, [parts["name"], operation, parts["type"]])),
        shape="box",
        style="filled,rounded",
        fillcolor=fill,
        tooltip=line["text"],
        fontname="sans-serif",
        fontsize="10",
    )
