"""Whether an MLP that was found may be fused: the sentence that says why not, or None.

Every check is one function, asked in order; the first refusal is the one reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .match_mlp import Mlp
from .mutation import find_write_between, writes_shared_value
from .names import joined
from .op_table import spelled
from .peel import peel, same_value
from .values import shape_of, tensor_of


def check_mlp(mlp: Mlp) -> str | None:
    """Why this MLP cannot be one `zigpass.gated_mlp`, or None when it can."""
    return next((reason for check in CHECKS if (reason := check(mlp)) is not None), None)


def check_packed(mlp: Mlp) -> str | None:
    unpacked = [linear.module for linear in mlp.linears if not linear.packed]
    if not unpacked:
        return None
    verb = "is" if len(unpacked) == 1 else "are"
    return f"{joined(unpacked)} {verb} not quantized: call zigpass.quantize_(model, ...) first"


def check_distinct(mlp: Mlp) -> str | None:
    return f"gate and up are the same linear ({mlp.up.module})" if mlp.gate is mlp.up else None


def check_escapes(mlp: Mlp) -> str | None:
    own = {*mlp.interior, mlp.down.node}
    for node in mlp.interior:
        for user in node.users:
            if user not in own:
                return f"the value {node.name} inside the MLP is also used outside it, by {user.name}"
    return None


def check_inputs(mlp: Mlp) -> str | None:
    if mlp.gate is None or same_value(mlp.gate.x, mlp.up.x):
        return None
    return f"gate and up read different inputs ({mlp.gate.x.name}, {mlp.up.x.name})"


def check_thresholds(mlp: Mlp) -> str | None:
    if mlp.gate is None or mlp.gate.threshold is mlp.up.threshold:
        return None
    names = [str(getattr(threshold, "name", threshold)) for threshold in (mlp.gate.threshold, mlp.up.threshold)]
    return f"gate and up have different thresholds ({names[0]}, {names[1]}): give both linears the same Site"


def check_sizes(mlp: Mlp) -> str | None:
    if mlp.gate is not None and mlp.gate.n != mlp.up.n:
        return f"gate and up have different row counts ({mlp.gate.n}, {mlp.up.n})"
    if mlp.down.k != mlp.up.n:
        return f"the middle has {mlp.up.n} features, down reads {mlp.down.k}"
    return None


def check_result(mlp: Mlp) -> str | None:
    """The op returns x's shape up to the last dimension and x's dtype; so must the block."""
    x, out = tensor_of(mlp.up.x), tensor_of(mlp.down.node)
    if x is None or out is None:
        return "the graph carries no shapes here"
    if x.dtype != out.dtype:
        return f"the block takes {x.dtype} and returns {out.dtype}"
    before, after = shape_of(mlp.up.x), shape_of(mlp.down.node)
    if before is None or after is None or len(before) != len(after):
        return f"the block takes shape {tuple(x.shape)} and returns {tuple(out.shape)}"
    for size, result in zip(before[:-1], after[:-1], strict=True):
        if isinstance(size, int) and isinstance(result, int) and size != result:
            return f"the block takes shape {tuple(x.shape)} and returns {tuple(out.shape)}"
    return None


def check_writes(mlp: Mlp) -> str | None:
    """The fused op stands where down stood: what it reads must not have been overwritten on the way."""
    for node in mlp.interior:
        if writes_shared_value(node):
            return f"{node.name} ({spelled(node)}) overwrites a value in place that the MLP reads again"
    places = [linear.node for linear in mlp.linears]
    if mlp.gate is not None and mlp.gate.x is not mlp.up.x:
        for linear in (mlp.gate, mlp.up):
            peel(linear.x, places)
    values = [node for linear in mlp.linears for node in linear.inputs if node not in mlp.interior]
    write = find_write_between(min(places), mlp.down.node, values, ignore=mlp.interior)
    if write is None:
        return None
    return f"{write.name} ({spelled(write)}) writes in place into an input of the MLP between its linears"


CHECKS: Final[tuple[Callable[[Mlp], str | None], ...]] = (
    check_packed,
    check_distinct,
    check_escapes,
    check_inputs,
    check_thresholds,
    check_sizes,
    check_result,
    check_writes,
)
