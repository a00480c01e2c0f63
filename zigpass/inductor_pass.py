"""The passes as a hook of plain Inductor, for code that insists on `backend="inductor"`.

torch.compile(model, options={"pre_grad_custom_pass": zigpass.inductor_pass.ZigzagPass()})
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, GraphModule

from zigpass import passes
from zigpass.passes import Context, PassError

from .compile_log import CompileLog
from .inductor_calls import write_direct_calls
from .options import BackendOptions
from .rewrite_graph import describe_kinds


class ZigzagPass(CustomGraphPass):  # type: ignore[misc]  # torch._inductor is not type-checked here
    """Rewrites one Inductor graph before autograd sees it; Inductor itself calls it for every subgraph.

    Args:
        switches: as option `passes` of the backend, such as {"fuse_qkv": False}.

    Attributes:
        contexts: what was found, one entry per graph that Inductor compiled. A graph that Inductor takes from its
            cache is rewritten already and adds none.
    """

    def __init__(self, switches: dict[str, bool] | None = None) -> None:
        self.skip = BackendOptions(passes=switches or {}).skip
        self.contexts: list[Context] = []

    def __call__(self, graph: Graph) -> None:
        gm = graph.owning_module
        if not isinstance(gm, GraphModule):
            raise PassError("the graph does not belong to a GraphModule")
        if torch.is_grad_enabled() and _any_requires_grad(graph):
            return
        write_direct_calls()
        watch = CompileLog(gm)
        context = passes.run(gm, Context(skip=self.skip, observe=watch.observe))
        watch.rewritten([context])
        watch.compiled([context], sum(context.seconds.values()), None)
        self.contexts.append(context)

    def uuid(self) -> str:
        """Names what this pass does, so that Inductor's caches forget graphs rewritten by another version of it."""
        digest = hashlib.sha256(source_digest().encode())
        digest.update(repr(sorted(self.skip)).encode())
        digest.update(passes.registered_digest().encode())
        return digest.hexdigest()

    def __str__(self) -> str:
        return f"ZigzagPass: {'; '.join(describe_kinds(context.kinds) for context in self.contexts) or 'not run yet'}"


def source_digest() -> str:
    """A hash of the version and of every source file of the passes."""
    digest = hashlib.sha256(importlib.metadata.version("zigpass").encode())
    for file in sorted(importlib.resources.files(passes).iterdir(), key=lambda item: item.name):
        if file.name.endswith(".py"):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _any_requires_grad(graph: Graph) -> bool:
    return any(getattr(passes.fake_value(node), "requires_grad", False) for node in graph.find_nodes(op="placeholder"))
