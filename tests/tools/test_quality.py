"""The results page and the measurements it is made of."""

import pytest
import torch

from tests.models import quantized_tiny_llama, random_tokens, tiny_llama
from zigpass.config import ZigzagConfig
from zigpass.linear import find_linears
from zigpass.tools import quality
from zigpass.tools.measure_quality import Measurement, measure_quality
from zigpass.tools.measure_quantizers import QuantizerMeasurement, measure_quantizers
from zigpass.tools.quality_page import GOALS, quality_page


@pytest.fixture(scope="module")
def measurement():
    return measure_quality(
        quantized_tiny_llama(),
        random_tokens(1000),
        random_tokens(500, seed=1),
        names=("SmolLM2-135M-tiny", "some text", "another text"),
        targets=(0.25, 0.5),
        combinations=(("magnitude", "measured"), ("magnitude", "uniform"), ("column_norm", "uniform")),
        window=64,
        num_windows=3,
        progress=False,
    )


@pytest.fixture(scope="module")
def quantizers():
    configs = {
        "out, mse": ZigzagConfig(scale_axis="out"),
        "in, 2 bits": ZigzagConfig(bits=2, group_size=32),
        "in, gptq": ZigzagConfig(group_size=32, method="gptq"),
    }
    return measure_quantizers(
        tiny_llama(),
        random_tokens(1000),
        random_tokens(500, seed=1),
        names=("tiny", "some text", "another text"),
        configs=configs,
        window=64,
        num_windows=3,
        progress=False,
    )


def test_the_page_shows_every_row_and_the_goals(measurement, quantizers):
    page = quality_page([measurement], [quantizers])
    lines = page.splitlines()
    for row in measurement.rows:
        assert any(
            line.startswith(f"| {row.target:.0%} | {row.rule} |") and row.allocation in line and f"{row.kl:.4f}" in line
            for line in lines
        )
    default = measurement.rows[0]
    kl, top1 = GOALS[0.25]
    met = "yes" if default.kl <= kl and default.top1 >= top1 else "no"
    assert f"| 25% | {kl} | {default.kl:.4f} | {top1:.0%} | {default.top1:.1%} | {met} |" in lines
    assert "| uniform, column_norm | " in page
    for quantizer in quantizers.rows:
        assert f"| {quantizer.name} | {quantizer.bits_per_weight} | {quantizer.kl:.4f} ±" in page


def test_the_page_is_written_from_the_files(measurement, quantizers, tmp_path):
    pytest.importorskip("matplotlib")
    results = tmp_path / "tools" / "results"
    measurement.save(results / "quality-SmolLM2-135M-tiny.json")
    quantizers.save(results / "quantizers-tiny.json")
    assert Measurement.load(results / "quality-SmolLM2-135M-tiny.json") == measurement
    assert QuantizerMeasurement.load(results / "quantizers-tiny.json") == quantizers
    quality.write_page(tmp_path)
    assert (tmp_path / "docs" / "quality.md").read_text() == quality_page([measurement], [quantizers])
    assert (tmp_path / "docs" / "quality-SmolLM2-135M-tiny.png").stat().st_size > 1000


def test_quantizers_start_from_the_same_weights(quantizers):
    rows = {row.name: row for row in quantizers.rows}
    assert rows["in, 2 bits"].kl > 3 * rows["in, gptq"].kl > 0
    assert rows["in, 2 bits"].bits_per_weight < rows["in, gptq"].bits_per_weight
    assert rows["in, gptq"].top1 > rows["in, 2 bits"].top1
    assert all(row.kl_error > 0 for row in quantizers.rows)


def test_the_float_model_is_left_alone():
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"window": 64, "num_windows": 2, "progress": False}
    configs = {"one": ZigzagConfig(group_size=32)}
    measure_quantizers(
        model, random_tokens(300), random_tokens(300), names=("a", "b", "c"), configs=configs, **settings
    )
    assert not list(find_linears(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
