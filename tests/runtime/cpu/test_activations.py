"""Activation functions of compiled code against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zigpass.runtime import reference
from zigpass.runtime.cpu.activations import ACTIVATION_CODES, activate


@pytest.mark.parametrize("name", sorted(reference.ACTIVATIONS))
def test_equals_torch(name: str) -> None:
    x = torch.cat([torch.linspace(-100, 100, 40001), torch.randn(10000), torch.tensor([0.0, -0.0, 1e-30])])
    values = x.numpy().copy()
    activate(values, len(values), ACTIVATION_CODES[name])
    expected = reference.ACTIVATIONS[name](x.double())
    # 4e-7 of |x| is about three roundings; values that vanish are compared absolutely.
    error = (torch.from_numpy(values).double() - expected).abs()
    assert bool((error <= 4e-7 * expected.abs() + 1.5e-7 * x.double().abs().clamp(max=6)).all())


@pytest.mark.parametrize("name", sorted(reference.ACTIVATIONS))
def test_special_values(name: str) -> None:
    values = np.array([np.nan, np.inf, -0.0], np.float32)
    activate(values, 3, ACTIVATION_CODES[name])
    assert np.isnan(values[0])
    assert values[1] == np.inf
    assert values[2] == 0


def test_every_activation_of_the_reference_has_a_code() -> None:
    assert set(ACTIVATION_CODES) == set(reference.ACTIVATIONS)
