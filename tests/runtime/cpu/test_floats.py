"""float16 and bfloat16 conversions of compiled code, against torch on every value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zigpass.runtime.cpu.floats import DTYPE_CODES, narrow, widen

LOW_PRECISION = [torch.float16, torch.bfloat16]


def all_values(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [*LOW_PRECISION, torch.float32, torch.uint8])
def test_widening_is_exact(dtype: torch.dtype) -> None:
    values = all_values(dtype) if dtype in LOW_PRECISION else torch.arange(256).to(dtype)
    out = np.empty(values.numel(), np.float32)
    widen(values.data_ptr(), 0, values.numel(), DTYPE_CODES[dtype], out)
    torch.testing.assert_close(torch.from_numpy(out), values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_narrowing_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    exact = all_values(dtype).float()
    neighbours = exact.view(torch.int32)[:, None] + torch.tensor([0, 1, -1, 1 << 12, (1 << 12) + 1, 1 << 15, 1 << 16])
    halfway = torch.cat(
        [exact[:-1] / 2 + exact[1:] / 2, torch.tensor([65519.0, 65520.0, 3.4e38, torch.inf, -torch.inf])]
    )
    values = torch.cat([exact, neighbours.to(torch.int32).flatten().view(torch.float32), halfway, torch.randn(10000)])
    out = torch.empty(values.numel(), dtype=dtype)
    narrow(values.numpy(), 0, values.numel(), DTYPE_CODES[dtype], out.data_ptr(), 0)
    torch.testing.assert_close(out, values.to(dtype), rtol=0, atol=0, equal_nan=True)
