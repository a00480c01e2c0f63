"""Calibration and evaluation of a model on a GPU: as on the CPU, up to rounding."""

import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens
from zigpass.allocations import ALLOCATIONS
from zigpass.calibrate import calibrate
from zigpass.evaluate import evaluate
from zigpass.rules import RULES

pytestmark = pytest.mark.cuda

TEXT = random_tokens(2000)
OPTIONS = {"window": 96, "num_windows": 6, "progress": False}


def both(**options):
    """Thresholds and quality on the CPU and on the GPU."""
    found = []
    for device in ("cpu", "cuda"):
        model = quantized_tiny_llama().to(device)
        thresholds = calibrate(model, TEXT, 0.5, **options, **OPTIONS)
        found.append((thresholds, evaluate(model, TEXT, prefix=32, window=64, num_windows=4, progress=False)))
    return found


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_every_allocation_and_rule(allocation, rule):
    (on_cpu, cpu), (on_gpu, gpu) = both(allocation=allocation, rule=rule)
    assert on_gpu.allocation == on_cpu.allocation
    for name, site in on_cpu.sites.items():
        other = on_gpu.sites[name]
        assert other.target_sparsity == pytest.approx(site.target_sparsity, abs=0.02)
        torch.testing.assert_close(other.threshold, site.threshold, rtol=0.05, atol=1e-4)
    assert gpu.kl == pytest.approx(cpu.kl, rel=0.1)
    assert gpu.total_sparsity == pytest.approx(cpu.total_sparsity, abs=0.01)


def test_top_k_and_a_gpu_twice_the_same():
    (_, cpu), (first, gpu) = both(allocation="uniform", selection="top_k")
    assert gpu.kl == pytest.approx(cpu.kl, rel=0.1)
    _, (second, again) = both(allocation="uniform", selection="top_k")
    assert again == gpu
    assert all(torch.equal(second.sites[name].threshold, site.threshold) for name, site in first.sites.items())
