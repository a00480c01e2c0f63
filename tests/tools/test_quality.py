"""The results page and the measurements it is made of."""

import dataclasses

import pytest
import torch

from tests.models import WORDS, quantized_tiny_llama, random_tokens, tiny_llama
from zigpass.config import ZigzagConfig
from zigpass.linear import find_linears
from zigpass.runtime import ZigpassError
from zigpass.tools import quality
from zigpass.tools.measure_quality import Measurement, Row, measure_quality
from zigpass.tools.measure_quantizers import QuantizerMeasurement, measure_quantizers
from zigpass.tools.quality_page import GOALS, quality_page, slug


@pytest.fixture(scope="module")
def measurement():
    return measure_quality(
        quantized_tiny_llama(),
        random_tokens(1000),
        random_tokens(500, seed=1),
        names=("SmolLM2-135M-tiny", "some.txt", "another text.txt"),
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
    kl, top1 = GOALS["SmolLM2-135M"][0.25]
    met = "yes" if default.kl <= kl and default.top1 >= top1 else "no"
    assert f"| 25% | {kl} | {default.kl:.4f} | {top1:.0%} | {default.top1:.1%} | {met} |" in lines
    assert "| uniform, column_norm | " in page
    for quantizer in quantizers.rows:
        assert f"| {quantizer.name} | {quantizer.bits_per_weight} | {quantizer.kl:.4f} ±" in page


def test_the_page_is_written_from_the_files(measurement, quantizers, tmp_path):
    pytest.importorskip("matplotlib")
    results = tmp_path / "tools" / "results"
    measurement.save(results / f"{slug(measurement)}.json")
    quantizers.save(results / "quantizers-tiny.json")
    assert Measurement.load(results / f"{slug(measurement)}.json") == measurement
    assert QuantizerMeasurement.load(results / "quantizers-tiny.json") == quantizers
    quality.write_page(tmp_path)
    assert (tmp_path / "docs" / "quality.md").read_text() == quality_page([measurement], [quantizers])
    assert (tmp_path / "docs" / "quality-SmolLM2-135M-tiny-another-text.png").stat().st_size > 1000


def test_one_command_measures_a_folder_on_each_text(folder, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("fit.txt", "a.txt", "b c.txt")]
    for seed, file in enumerate(files):
        file.write_text(" ".join(WORDS[token] for token in random_tokens(2600, seed=seed).tolist()), encoding="utf-8")
    monkeypatch.setattr(quality, "TARGETS", (0.3,))
    monkeypatch.setattr(quality, "COMBINATIONS", (("magnitude", "uniform"), ("top_k", "uniform")))
    quality.quality(folder, text=files[1:], calibration=files[:1], windows=2, output=tmp_path, bits=4, group_size=32)
    page = (tmp_path / "docs" / "quality.md").read_text()
    for text, name in (("a.txt", "a"), ("b c.txt", "b-c")):
        assert f"## {folder.name} on {text}" in page
        file = f"quality-{folder.name}-{name}"
        measurement = Measurement.load(tmp_path / "tools" / "results" / f"{file}.json")
        assert [row.rule for row in measurement.rows] == ["magnitude", "top_k"]
        assert (measurement.held_out_text, measurement.scored_tokens) == (text, 2 * 255)
        assert (tmp_path / "docs" / f"{file}.png").is_file()


def rows(*kls_by_allocation):
    """Rows at 50 % whose windows have these KLs."""
    return [
        Row(0.5, "magnitude", allocation, allocation, 0, 0, 0.5, 0, 1, 0, 0, sum(kls) / len(kls), 0, 1, 0, kls)
        for allocation, kls in kls_by_allocation
    ]


@pytest.mark.parametrize(
    ("default", "verdict"),
    [
        ((0.1, 0.2), "the best"),
        ((0.19, 0.33), "within one standard error of the best, uniform"),
        ((0.3, 0.41), "0.1050 ± 0.0050 behind the best, uniform"),
    ],
)
def test_the_page_says_whether_the_default_is_the_best(measurement, default, verdict):
    own = rows(("measured", default), ("uniform", (0.2, 0.3)), ("teal", (0.5, 0.5)))
    assert f"at 50% the default is {verdict}." in quality_page([dataclasses.replace(measurement, rows=own)], [])


def test_a_goal_may_lack_a_top1(measurement):
    own = rows(("measured", (0.35, 0.36)), ("uniform", (0.4, 0.4)))
    page = quality_page([dataclasses.replace(measurement, model="gemma-3-270m", rows=own)], [])
    assert "| 50% | 0.36 | 0.3550 | - | 100.0% | yes |" in page


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


def test_quantizers_are_compared_on_the_cpu():
    with pytest.raises(ZigpassError, match="--quantizers compares on the CPU: leave --device out"):
        quality.quality(quantizers=True, device="cuda")
