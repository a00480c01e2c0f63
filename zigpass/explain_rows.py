"""The rows of `explain`: one per linear of the model, whatever holds its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

from zigpass.passes import Linear
from zigpass.runtime import Layout

from .bytes_read import linear_bytes_read
from .explain import Findings
from .explain_dense import NEVER_SPARSE, dense_launches
from .explain_report import LinearRow
from .float_linears import is_conv1d, is_float_linear, weight_of
from .linear import ZigzagLinear, find_linears
from .prepare import NOT_QUANTIZED, Finding, survey

HEAD = "the output head: quantize_ leaves it in float unless filter_fn asks for it"
SUBCLASS = "a subclass of nn.Linear, which may compute something else: quantize_ leaves it as it is"
UNPREPARED = "quantized, but not packed: call zigpass.prepare"
PARAMETER = "a weight that its module uses by itself, not through a linear that could be replaced"
NO_CALL = "not part of any captured graph"


def find_rows(model: nn.Module, findings: Findings, sparsity: float | None) -> list[LinearRow]:
    """A row for every linear of the model in the order of its modules, then for weights that no linear holds.

    Args:
        sparsity: share of inactive entries to count bytes for; None for the target of each site.
    """
    found_in_model = survey(model)
    surveyed = {found.name: found for found in found_in_model if found.in_graph is None}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    dense = dense_launches(dict(find_linears(model)), findings.at_decode)
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, ZigzagLinear):
            rows.append(_packed_row(name, module, findings, sparsity, name in dense))
        elif name in surveyed and surveyed[name].recognized:
            rows.append(_unprepared_row(surveyed[name], module, findings))
        elif name in surveyed or is_conv1d(module):
            reason = surveyed[name].reason if name in surveyed else None
            rows.append(_float_row(name, module, findings, module is head, reason))
        rows += _expert_rows(name, module)
    rows += [_graph_row(found, found.in_graph, findings) for found in found_in_model if found.in_graph is not None]
    known = {row.name for row in rows}
    for name, linear in findings.loose.items():
        if name in known:
            continue
        sizes = (linear.n, linear.k, linear.num_bytes)
        if linear.representation is None:
            rows.append(_row(name, "float", *sizes, PARAMETER, "parameter"))
        else:
            rows.append(_row(name, "quantized", *sizes, _reasons(name, findings), linear.representation))
    return rows


def _packed_row(
    name: str, linear: ZigzagLinear, findings: Findings, sparsity: float | None, never_sparse: bool
) -> LinearRow:
    kind, note = _kind_and_note(name, findings)
    if never_sparse:
        note = "; ".join(filter(None, [NEVER_SPARSE, note]))
    num_bytes = linear.packed.num_bytes
    share = (
        0.0
        if linear.site is None or never_sparse
        else sparsity
        if sparsity is not None
        else linear.site.target_sparsity
    )
    layout = linear.layout
    return LinearRow(
        name=name,
        site=linear.site.name if linear.site is not None else "",
        representation=describe_layout(layout),
        kind=kind,
        n=layout.n,
        k=layout.k,
        num_bytes=num_bytes,
        active_bytes=None if share is None else round(linear_bytes_read(linear, share)),
        note=note,
    )


def describe_layout(layout: Layout) -> str:
    """ "zigzag 4 bit, 32 inputs": what a packed weight is held in."""
    axis = "inputs" if layout.scale_axis == "in" else "outputs"
    return f"zigzag {layout.bits} bit, {layout.group_size} {axis}"


def _kind_and_note(name: str, findings: Findings) -> tuple[str, str]:
    note = _reasons(name, findings)
    kinds = [match.kind for match in findings.matches if name in match.modules]
    at_decode = [match.kind for match in findings.at_decode if name in match.modules]
    if kinds:
        return Counter(kinds).most_common(1)[0][0], note
    if not at_decode:
        return "unused", note or NO_CALL
    rows = findings.rows_of.get(name)
    now = f"{rows} rows: runs dense" if rows is not None else "number of rows not fixed: runs dense"
    return "dense", "; ".join(filter(None, [f"{now}, {at_decode[0]} when decoding one token", note]))


def _reasons(name: str, findings: Findings) -> str:
    reasons = [near_miss.reason for near_miss in findings.near_misses if name in near_miss.modules]
    return "; ".join(dict.fromkeys(reasons))


def _unprepared_row(found: Finding, module: nn.Module, findings: Findings) -> LinearRow:
    """Quantized by another library. Its own reason comes first: calling `prepare` would not help before it is met."""
    n, k = _sizes(module)
    note = found.reason or _reasons(found.name, findings) or UNPREPARED
    return _row(found.name, "quantized", n, k, _module_bytes(module), note, found.representation)


def _graph_row(found: Finding, linear: Linear, findings: Findings) -> LinearRow:
    """A call in a graph module that dequantizes its weight."""
    note = found.reason or _reasons(found.name, findings) or UNPREPARED
    return _row(found.name, "quantized", linear.n, linear.k, linear.num_bytes, note, found.representation)


def _float_row(name: str, module: nn.Module, findings: Findings, is_head: bool, surveyed: str | None) -> LinearRow:
    n, k = _sizes(module)
    if not (isinstance(module, nn.Linear) or is_conv1d(module)):
        note = "not a representation that zigpass knows; it stays as it is"
    elif not is_float_linear(module):
        note = f"{type(module).__name__} is {SUBCLASS}"
    elif surveyed not in (None, NOT_QUANTIZED):
        note = surveyed or ""
    else:
        note = _reasons(name, findings) or (HEAD if is_head else NOT_QUANTIZED)
    weight = getattr(module, "weight", None)
    representation = str(weight.dtype).removeprefix("torch.") if isinstance(weight, Tensor) else type(module).__name__
    num_bytes = _num_bytes([weight]) if isinstance(weight, Tensor) else _module_bytes(module)
    return _row(name, "float", n, k, num_bytes, note, representation)


def _expert_rows(name: str, module: nn.Module) -> list[LinearRow]:
    """Experts that share one parameter [experts, N, K]: no linear, so nothing that could be replaced."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return []
    rows = []
    for leaf, weight in module._parameters.items():
        if weight is None or weight.dim() != 3:
            continue
        count, n, k = weight.shape
        note = f"{count} experts in one parameter, of which the router picks some for each token: they run in float"
        full_name = f"{name}.{leaf}" if name else leaf
        num_bytes, representation = _num_bytes([weight]), f"{weight.dtype}, {count} experts".removeprefix("torch.")
        # How many of them a token reads is the router's business.
        rows.append(LinearRow(full_name, "", representation, "float", n, k, num_bytes, None, note, count))
    return rows


def _row(name: str, kind: str, n: int, k: int, num_bytes: int, note: str, representation: str) -> LinearRow:
    """A row of a linear that is read whole."""
    return LinearRow(name, "", representation, kind, n, k, num_bytes, num_bytes, note)


def _sizes(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear) or is_conv1d(module):
        n, k = weight_of(module).shape
        return int(n), int(k)
    return int(getattr(module, "out_features", 0)), int(getattr(module, "in_features", 0))


def _module_bytes(module: nn.Module) -> int:
    return _num_bytes([*module.parameters(), *module.buffers()])


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; of a tensor subclass, of the tensors inside it."""
    total = 0
    for tensor in tensors:
        if hasattr(tensor, "__tensor_flatten__"):
            inner, _ = tensor.__tensor_flatten__()
            total += _num_bytes(getattr(tensor, leaf) for leaf in inner)
        else:
            total += tensor.numel() * tensor.element_size()
    return total
