"""Column norm: an entry counts for more when the weight column it multiplies is large (WINA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zigpass.linear import ZigzagLinear

if TYPE_CHECKING:
    from zigpass.calibration import Calibration


class ColumnNorm:
    """Score |x_k| * norm of column k, over all the weights that read the site together."""

    name = "column_norm"

    def column_weights(self, calibration: Calibration) -> dict[str, Tensor] | None:
        return {site.name: _column_norms(linears) for site, linears in calibration.readers.items()}


def _column_norms(linears: list[ZigzagLinear]) -> Tensor:
    squares = torch.stack([linear.unpack().dequantize().square().sum(0) for linear in linears])
    return squares.sum(0).sqrt().cpu()
