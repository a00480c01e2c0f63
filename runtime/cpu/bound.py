"""Checked weights, remembered between calls.

Checking a weight and writing its record takes 3 us, which for a small layer is a tenth of the call. So the result is
kept, under the address of the codes, and used again when everything that it was made from is the same: every tensor's
address, size, dtype and contiguity, and the layout. That is compared at every call (1 us), so a weight that moved, was
resized or freed is never taken for the one before, and values that changed in place are simply read.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from torch import Tensor

from .arguments import checked_bias
from .floats import FLOAT32
from .huge_pages import ask_for_huge_pages
from .record import OUT, OUT_DTYPE, WeightPlan, weight_plan

_MOST_KEPT = 16384


class BoundWeight:
    """The plan of a weight, and its record but for the address of the result."""

    def __init__(self, plan: WeightPlan, spec: str, weight: Sequence[Tensor], bias: Tensor | None) -> None:
        self.plan = plan
        self._spec = spec
        self._parts = [(t.data_ptr(), t.numel(), t.dtype) for t in weight]
        self._bias = None if bias is None else (bias.data_ptr(), bias.numel(), bias.dtype)
        self._template = array("q", plan.record(weight, bias, 0, FLOAT32))

    def is_for(self, weight: Sequence[Tensor], bias: Tensor | None, spec: str) -> bool:
        """Whether a weight is the one that this was made from."""
        if spec != self._spec or len(weight) != len(self._parts):
            return False
        for tensor, part in zip(weight, self._parts, strict=True):
            if not tensor.is_contiguous() or (tensor.data_ptr(), tensor.numel(), tensor.dtype) != part:
                return False
        if bias is None or self._bias is None:
            return bias is None and self._bias is None
        return bias.is_contiguous() and (bias.data_ptr(), bias.numel(), bias.dtype) == self._bias

    def record(self, out: int, out_dtype: int) -> array[int]:
        """The record for a result at address `out`."""
        record = self._template[:]
        record[OUT] = out
        record[OUT_DTYPE] = out_dtype
        return record


_kept: dict[int, BoundWeight] = {}


def bind(weight: Sequence[Tensor], bias: Tensor | None, spec: str) -> BoundWeight:
    """Check a weight and its bias; one that is new also moves into huge pages.

    Raises:
        ZigpassError: sizes, dtypes or strides that the kernels cannot take.
    """
    address = weight[0].data_ptr() if weight else 0
    bound = _kept.get(address)
    if bound is not None and bound.is_for(weight, bias, spec):
        return bound
    plan = weight_plan(spec, *[tensor.dtype for tensor in weight])
    if not plan.fits(weight):
        raise plan.explain_misfit(weight)
    checked_bias(plan, bias)
    bound = BoundWeight(plan, spec, weight, bias)
    # The meta and fake tensors of a trace have no memory to remember.
    if address:
        ask_for_huge_pages(weight)
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[address] = bound
    return bound
