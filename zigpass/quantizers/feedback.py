"""GPTQ: quantize column after column, and let the columns that are left make up for the error (arXiv 2210.17323).

The error that counts is that of the layer's output on its inputs, tr(E G E^T) with G the Gram matrix of the inputs; the
columns that are still float move to where it is least. With scales along the outputs a group lies inside one
column, so its scales are found when the column is reached, from weights that are already corrected.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zigpass.config import SCALE_DTYPES, ZigzagConfig
from zigpass.runtime import ColumnScales, GroupScales, QuantizedWeight, ZigpassError

from . import columns as column_form
from . import groups as group_form

DAMPING = 0.01
"""Share of the mean diagonal that is added to the Gram matrix, so that inputs that hardly vary can be divided by."""
MAX_DAMPING = 10.0
BATCH = 128
"""Columns between two updates of all columns that are left."""

Quantize = Callable[[int, Tensor], Tensor]
"""Quantize one column, float32 [N, 1], keep its codes, and say what they stand for."""


def quantize_with_feedback(weight: Tensor, config: ZigzagConfig, gram: Tensor) -> QuantizedWeight:
    """Quantize float [N, K] for inputs with this Gram matrix, float32 [K, K].

    Raises:
        ZigpassError: the Gram matrix is not finite or of another size, or a scale does not fit its dtype.
    """
    k = weight.shape[1]
    if tuple(gram.shape) != (k, k) or not bool(torch.isfinite(gram).all()):
        raise ZigpassError(f"the Gram matrix of the inputs must be finite and {k} x {k}, got {tuple(gram.shape)}")
    weight, gram = weight.float().clone(), gram.to(weight.device, torch.float32)
    if config.scale_axis == "in":
        return _group_form(weight, config, _inverse_factor(gram))
    # Columns are independent groups, so the order is free: those with the strongest inputs go first, while the most
    # columns are left to make up for them.
    order = gram.diagonal().argsort(descending=True, stable=True)
    return _column_form(weight, config, order, _inverse_factor(gram[order][:, order]))


def _inverse_factor(gram: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped Gram matrix."""
    mean = float(gram.diagonal().mean())
    if mean <= 0:  # no input ever differed from 0: nothing to weigh, every column alone
        return torch.eye(len(gram), device=gram.device)
    damping = DAMPING
    upper: Tensor
    while damping <= MAX_DAMPING:
        damped = gram + damping * mean * torch.eye(len(gram), device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(factor)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                return upper
        damping *= 10
    raise ZigpassError("the Gram matrix of the inputs is not positive; calibrate on more text")


def _group_form(weight: Tensor, config: ZigzagConfig, factor: Tensor) -> QuantizedWeight:
    n, k = weight.shape
    size, bits, dtype = config.group_size, config.bits, SCALE_DTYPES[config.scale_dtype]
    codes = torch.empty(n, k, dtype=torch.uint8, device=weight.device)
    scales, zeros = [], []
    batch = math.gcd(size, BATCH) if size < k else BATCH
    for start in range(0, k, batch):
        if start % size == 0:
            # What an error in a column costs once all later columns have moved: 1 / diagonal^2 of the factor.
            columns = slice(start, min(start + size, k))
            importance = factor.diagonal()[columns].square().reciprocal()
            scale, zero = group_form.search_group(weight[:, columns], bits, dtype, group_form.SHRINKS, importance)
            scales.append(scale)
            zeros.append(zero)
        end = min(start + batch, k)

        def quantize(column: int, values: Tensor, scale: Tensor = scale, zero: Tensor = zero) -> Tensor:
            code = group_form.encode(values, scale, zero, bits)
            codes[:, column] = code[:, 0].to(torch.uint8)
            return group_form.decode(code, scale, zero)

        _feed_back(weight, factor, start, end, quantize)
    scale = torch.stack(scales, 1).to(dtype)
    group_form.check_scales(scale)
    return QuantizedWeight(
        codes, bits, GroupScales(scale, torch.stack(zeros, 1).to(torch.uint8), "sub_int", config.group_size)
    )


def _column_form(weight: Tensor, config: ZigzagConfig, order: Tensor, factor: Tensor) -> QuantizedWeight:
    weight = weight[:, order].contiguous()
    k = weight.shape[1]
    parts: list[tuple[Tensor, ...]] = []

    def quantize(column: int, values: Tensor) -> Tensor:
        code, *scales = column_form.quantize_chunk(values, config.bits, column_form.SHRINKS)
        parts.append((code, *scales))
        return ColumnScales(*scales).apply(code.float())

    for start in range(0, k, BATCH):
        _feed_back(weight, factor, start, min(start + BATCH, k), quantize)
    back = order.argsort()
    codes, *scales = (torch.cat(part, 1)[:, back].contiguous() for part in zip(*parts, strict=True))
    return column_form.finish(codes, config.bits, *scales)


def _feed_back(weight: Tensor, factor: Tensor, start: int, end: int, quantize: Quantize) -> None:
    """Quantize the columns from start to end and move the ones behind them; works in place on `weight`."""
    errors = torch.empty(weight.shape[0], end - start, device=weight.device)
    for column in range(start, end):
        values = weight[:, column : column + 1]
        error = (values - quantize(column, values)) / factor[column, column]
        weight[:, column:end] -= error * factor[column, column:end]
        errors[:, column - start] = error[:, 0]
    weight[:, end:] -= errors @ factor[start:end, end:]
