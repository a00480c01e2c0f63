"""Module names, for reports: which layer of the user's model a node came from."""

from __future__ import annotations

import re

from torch.fx import Node

# A forward that is wrapped as (*args) is at L['args'][0] (transformers 5.24).
_ROOT = re.compile(r"^[LG]\['\w+'\](\[\d+\])?(\.__closure__\[\d+\]\.cell_contents)?\.?")
_CHILD = re.compile(r"\._modules\['([^']+)'\]|\[['\"]?([^'\"\]]+)['\"]?\]")


def module_name(node: Node) -> str:
    """The qualified name of the innermost module a node came from, else the node's own name.

    In a graph that starts at a layer (after a graph break, or `layer.compile()`), the name starts at that layer.
    """
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return node.name
    path = next(reversed(stack.values()))[0]
    return clean_path(path) or node.name


def clean_path(path: str) -> str:
    """ "L['self'].model.layers.0" -> "model.layers.0"."""
    tail = _ROOT.sub("", path)
    return _CHILD.sub(lambda part: "." + (part[1] or part[2]), "." + tail).strip(".")


def joined(names: list[str]) -> str:
    """Names for a sentence, their common beginning said once: "model.layers.0.mlp.(gate_proj, up_proj)"."""
    unique = list(dict.fromkeys(names))
    if len(unique) == 1:
        return unique[0]
    parents = {name.rpartition(".")[0] for name in unique}
    if len(parents) == 1 and (parent := parents.pop()):
        return f"{parent}.({', '.join(name.rpartition('.')[2] for name in unique)})"
    return ", ".join(unique)
