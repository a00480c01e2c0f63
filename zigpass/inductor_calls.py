"""How Inductor's Python code calls zigpass's operators on the CPU: directly, not through torch's dispatcher."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from zigpass.runtime.ops import NAMESPACE, OPS

logger = logging.getLogger(__name__)


@functools.cache
def write_direct_calls() -> None:
    """Tell Inductor, once in a process.

    A torch whose Inductor has no such hook keeps its calls; they only take longer (`zigpass bench overhead`).
    """
    try:
        from torch._inductor.codegen.custom_extern_kernel_codegen import CUSTOM_EXTERN_KERNEL_CODEGEN, CustomCodegen
        from torch._inductor.codegen.wrapper import ExternKernelAllocLine
        from torch._inductor.virtualized import V
    except ImportError as error:
        logger.info("operators on the CPU are called through torch's dispatcher: %s", error)
        return

    def write_call(name: str, node: Any, write: Callable[[Any], None]) -> None:
        if node.get_device().type == "cpu":
            node.set_python_kernel_name(f"torch.ops.{NAMESPACE}.{name}.direct_cpu")
        write(ExternKernelAllocLine(V.graph.wrapper_code, node))

    for name in OPS:
        CUSTOM_EXTERN_KERNEL_CODEGEN[f"torch.ops.{NAMESPACE}.{name}.default"] = CustomCodegen(
            python=functools.partial(write_call, name)
        )
