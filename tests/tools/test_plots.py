"""Plots from real files of the other tools."""

import json
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zigpass.cli import app
from zigpass.runtime import ZigpassError
from zigpass.tools.bench_files import read_points
from zigpass.tools.plot_sparsity import read_sites

RESULTS = Path(__file__).parent.parent.parent / "tools" / "results"
CPU = RESULTS / "cpu-xeon-float32-1t.json"
GPU = RESULTS / "gemv_h100.json"


@pytest.fixture
def inspected(tmp_path):
    sites = [
        {
            "name": f"model.layers.{layer}.mlp.{kind}", "kind": kind, "layer": layer, "threshold": 0.3,
            "target_sparsity": 0.5 if layer else None, "realized_sparsity": 0.4 + 0.1 * layer,
            "edges": [0.125, 0.25, 0.5, 1.0], "counts": [3, 5, 2],
        }
        for layer in (0, 1)
        for kind in ("mlp_in", "mlp_mid")
    ]  # fmt: skip
    path = tmp_path / "inspect.json"
    path.write_text(json.dumps({"sites": sites}))
    return path


def draw(tmp_path, *arguments):
    """Size of the picture that a command draws."""
    path = tmp_path / "plot.png"
    CliRunner().invoke(app(), ["plot", *map(str, arguments), "--output", str(path)], catch_exceptions=False)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


def test_sparsity_has_a_panel_for_each_kind_of_site(inspected, tmp_path):
    assert draw(tmp_path, "sparsity", inspected) == (1080, 528)


def test_histograms_have_a_panel_for_each_layer_and_kind(inspected, tmp_path):
    two = draw(tmp_path, "histograms", inspected)
    one = draw(tmp_path, "histograms", inspected, "--layer", "1")
    assert two[0] > one[0]
    with pytest.raises(ZigpassError, match=r"no sites in layer \[7\]; there are \[0, 1\]"):
        draw(tmp_path, "histograms", inspected, "--layer", "7")


def test_bench_and_roofline_read_both_kinds_of_files(tmp_path):
    assert draw(tmp_path, "bench", CPU, GPU)[0] > 1000
    assert draw(tmp_path, "roofline", CPU, GPU)[0] > 800


def test_quality(tmp_path):
    assert draw(tmp_path, "quality", RESULTS / "quality-SmolLM2-135M-Instruct-lcet10.json")[0] > 800


def test_points_are_what_the_files_say():
    points = read_points([CPU, GPU])
    rows = json.loads(CPU.read_text())["rows"]
    assert sum("Xeon" in point.device for point in points) == len(rows)
    (mlp,) = [p for p in points if p.shape == "MLP 4096-11008" and p.sparsity == 0 and "Xeon" in p.device]
    (row,) = [row for row in rows if row["shape"] == "MLP 4096-11008" and not row["sparsity"]]
    assert mlp.num_bytes == 3 * 4096 * 11008 * (0.5 + 3 / 128)
    assert mlp.microseconds == row["zigpass_us"]["median"]
    assert mlp.peer_microseconds == row["peers_us"][row["best_peer"]]["median"]
    gpu = [point for point in points if "H100" in point.device]
    first = next(row for row in json.loads(GPU.read_text())["results"] if row["kind"] == "mlp")
    assert gpu[0].bandwidth == pytest.approx(first["active_gb_per_s"] * 1e9)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ZigpassError, match="not a file of zigpass inspect --json"):
        read_sites(tmp_path / "other.json")
    with pytest.raises(ZigpassError, match="not a file of zigpass bench"):
        read_points([tmp_path / "other.json"])
    (tmp_path / "empty.json").write_text('{"sites": []}')
    with pytest.raises(ZigpassError, match="no activations in it"):
        read_sites(tmp_path / "empty.json")
