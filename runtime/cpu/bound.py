"""Checked weights, remembered between calls.

Checking the weights of an op and writing their records takes longer than all the rest of a small call. So the result is
kept, under the addresses of the tensors, and used again when everything that it was made from is the same. Every call
compares the layouts and, of every tensor, which object it is, its address and its size, so a weight that moved, was
resized or freed is never taken for the one before, and values that changed in place are simply read. dtype and strides
are compared when an object is new; a known one keeps them, unless somebody gives it other ones over the same memory and
of the same size, which no read outside that memory can follow from.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ZigpassError
from ..layout import Layout
from .arguments import checked_bias
from .call import HEADER_FIELDS, NUM_RECORDS
from .floats import FLOAT32
from .huge_pages import ask_for_huge_pages
from .record import WeightPlan, weight_plan

_MOST_KEPT = 16384
# As functions for `map`: nine tensors take 0.6 us each way, and 1.1 us through bound methods.
_data_ptr = torch.Tensor.data_ptr
_numel = torch.Tensor.numel


class BoundWeights:
    """The weights of one op: their plans, and a call without the input, the thresholds and the results.

    Attributes:
        plans: of the weights, in the order of their records.
        sizes_out: N of each weight.
        num_codes: of all weights together.
        sizes: elements of each tensor.
        biased: which weights have a bias; None when none has.
        fits_project, fits_mlp: whether such an op has seen that the sizes of the weights fit together.
    """

    def __init__(
        self,
        specs: tuple[str, ...],
        plans: list[WeightPlan],
        parts: Sequence[Sequence[Tensor]],
        biases: Sequence[Tensor | None] | None,
    ) -> None:
        self.specs, self.plans = specs, plans
        self.sizes_out = [plan.n for plan in plans]
        self.num_codes = sum(plan.num_codes for plan in plans)
        self.biased = which(biases)
        self.fits_project = self.fits_mlp = False
        tensors = list_tensors([tensor for part in parts for tensor in part], biases)
        self.sizes = [*map(_numel, tensors)]
        self._dtypes = [tensor.dtype for tensor in tensors]
        self.ids: list[int] | None = None
        self._know(tensors)
        self._template = array("q", [0] * HEADER_FIELDS)
        self._template[NUM_RECORDS] = len(plans)
        for i, (plan, part) in enumerate(zip(plans, parts, strict=True)):
            self._template.extend(plan.record(part, biases[i] if biases else None, 0, FLOAT32))

    def is_for(self, tensors: list[Tensor]) -> bool:
        """Whether tensors of the same addresses and sizes, other objects than before, are the same weights."""
        for tensor, dtype in zip(tensors, self._dtypes, strict=True):
            if tensor.dtype != dtype or not tensor.is_contiguous():
                return False
        self._know(tensors)
        return True

    def new_call(self) -> array[int]:
        """A call of which the input, the thresholds, the threads and the results are still to be written."""
        return self._template[:]

    def _know(self, tensors: list[Tensor]) -> None:
        # An id means an object only while that lives: with the first that goes, they are forgotten.
        self._alive = [weakref.ref(tensor, self._forget) for tensor in tensors]
        self.ids = [*map(id, tensors)]

    def _forget(self, _: weakref.ref[Tensor]) -> None:
        self.ids = None


_kept: dict[tuple[int, ...], BoundWeights] = {}


def bind(weights: list[Tensor], biases: Sequence[Tensor | None] | None, specs: tuple[str, ...]) -> BoundWeights:
    """Check weights and their biases; ones that are new also move into huge pages.

    Args:
        weights: the packed tensors of all weights, one after the other.
        biases: one entry per weight; None when there is none at all.
        specs: the layout of each weight.

    Raises:
        ZigpassError: sizes, dtypes or strides that the kernels cannot take.
    """
    tensors = list_tensors(weights, biases)
    key = (*map(_data_ptr, tensors),)
    bound = _kept.get(key)
    if (
        bound is not None
        and bound.specs == specs
        and bound.sizes == [*map(_numel, tensors)]
        and (bound.ids == [*map(id, tensors)] or bound.is_for(tensors))
        and (biases is None or bound.biased == which(biases))
    ):
        return bound
    plans, parts, start = [], [], 0
    for i, spec in enumerate(specs):
        end = start + Layout.parse(spec).num_tensors
        part = weights[start:end]
        plan = weight_plan(spec, *[tensor.dtype for tensor in part])
        if not plan.fits(part):
            raise plan.explain_misfit(part)
        checked_bias(plan, biases[i] if biases else None)
        plans.append(plan)
        parts.append(part)
        start = end
    if start != len(weights):
        raise ZigpassError(
            f"got {len(specs)} layouts, {len(biases or specs)} biases and {len(weights)} packed tensors;"
            f" {', '.join(specs)} take {start} tensors"
        )
    bound = BoundWeights(specs, plans, parts, biases)
    # The meta and fake tensors of a trace have no memory to remember.
    if all(key):
        ask_for_huge_pages(weights)
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[key] = bound
    return bound


def which(biases: Sequence[Tensor | None] | None) -> tuple[bool, ...] | None:
    """Which weights have a bias."""
    return None if biases is None else tuple([bias is not None for bias in biases])


def list_tensors(weights: list[Tensor], biases: Sequence[Tensor | None] | None) -> list[Tensor]:
    """Packed tensors and biases in one list."""
    return weights if biases is None else [*weights, *[bias for bias in biases if bias is not None]]
