import pytest
import torch

from zigpass.histogram import MagnitudeHistogram
from zigpass.runtime import ZigpassError


def gaussian(count=100_000):
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


def test_quantiles_are_those_of_the_values():
    x, histogram = gaussian(), MagnitudeHistogram()
    histogram.add(x)
    for fraction in (0.01, 0.25, 0.5, 0.9, 0.999):
        threshold = histogram.quantile(fraction)
        assert (x.abs() < threshold).float().mean() == pytest.approx(fraction, abs=1e-4)
        assert histogram.fraction_below(threshold) == pytest.approx(fraction, abs=1e-6)


def test_pieces_in_any_order_give_the_same_counts():
    x = gaussian(1000)
    whole, pieces = MagnitudeHistogram(), MagnitudeHistogram()
    whole.add(x.view(10, 100))
    for piece in reversed(x.split(70)):
        pieces.add(piece)
    assert torch.equal(whole.counts, pieces.counts)
    assert whole.total == 1000


def test_low_precision_and_extreme_magnitudes_are_counted():
    histogram = MagnitudeHistogram()
    histogram.add(torch.tensor([0.0, -0.0, 1e-40, 1e38, -1e-20]))
    histogram.add(torch.ones(3, dtype=torch.bfloat16))
    assert histogram.total == 8
    assert histogram.fraction_below(2.0) == pytest.approx(7 / 8)


def test_mostly_zero_activations_get_a_tiny_threshold():
    histogram = MagnitudeHistogram()
    x = torch.cat([torch.zeros(90), torch.ones(10)])
    histogram.add(x)
    assert (x.abs() < histogram.quantile(0.5)).sum() == 90


def test_fraction_zero_is_threshold_zero():
    histogram = MagnitudeHistogram()
    histogram.add(gaussian(10))
    assert histogram.quantile(0.0) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ZigpassError, match="NaN or infinite"):
        MagnitudeHistogram().add(torch.tensor([1.0, bad]))


def test_nothing_counted_is_an_error():
    with pytest.raises(ZigpassError, match="no activations were seen"):
        MagnitudeHistogram().quantile(0.5)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.93, 1.0])
def test_energy_of_what_is_dropped(fraction):
    x = gaussian(20000)
    histogram = MagnitudeHistogram()
    histogram.add(x)
    dropped = x.abs().sort().values[: round(fraction * x.numel())]
    assert histogram.energy_below(fraction) == pytest.approx(
        float(dropped.double().square().sum()) / x.numel(), rel=0.01
    )


def test_nothing_is_dropped_at_fraction_zero():
    histogram = MagnitudeHistogram()
    histogram.add(gaussian(10))
    assert histogram.energy_below(0.0) == 0.0
    with pytest.raises(ZigpassError, match="no activations were seen"):
        MagnitudeHistogram().energy_below(0.5)


def test_everything_lies_below_what_float32_cannot_hold():
    histogram = MagnitudeHistogram()
    histogram.add(gaussian(10))
    assert histogram.fraction_below(1e60) == 1.0
