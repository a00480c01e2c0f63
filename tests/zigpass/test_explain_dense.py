"""`explain` on a GPU whose launch table says that skipping never pays for some shapes; the GPU is made up."""

import pytest
import torch

from tests.models import quantized_tiny_llama
from zigpass import explain_dense
from zigpass.explain import explain
from zigpass.linear import find_linears
from zigpass.runtime.cuda import launches, tables
from zigpass.runtime.cuda.device import Device
from zigpass.runtime.cuda.specialization import LaunchConfig
from zigpass.runtime.cuda.tables import NEVER, Entry, write_table

TOKEN = torch.tensor([[5]])


@pytest.fixture
def write_entries(monkeypatch, tmp_path):
    """Writes (n, k, break-even) into the table of a GPU that all linears are on."""
    torch._dynamo.reset()
    monkeypatch.setattr(tables, "user_folder", lambda: tmp_path)
    monkeypatch.setattr(launches, "get_device", lambda index: Device(0, "a GPU", 90, 132, 227 << 10))
    monkeypatch.setattr(explain_dense, "cuda_index", lambda linear: 0)

    def write(*shapes):
        entries = [Entry(4, "in", 1, n, k, LaunchConfig(4, 4, 1, 2), even) for n, k, even in shapes]
        write_table(tmp_path / "sm_90.json", entries, "a GPU", "a test")

    yield write
    tables.load_table.cache_clear()


def padded(linear):
    return linear.layout.padded_n


def test_launches_that_never_gain_are_named_and_read_whole(write_entries):
    model = quantized_tiny_llama()
    linears = dict(find_linears(model))
    layer = "model.layers.0."
    q, k, v = (linears[f"{layer}self_attn.{name}_proj"] for name in "qkv")
    gate, up, down = (linears[f"{layer}mlp.{name}_proj"] for name in ("gate", "up", "down"))
    write_entries(
        (padded(gate) + padded(up), gate.in_features, NEVER),
        (padded(q) + padded(k) + padded(v), q.in_features, 0.4),
        (padded(down), down.in_features, NEVER),
    )
    rows = {row.name: row for row in explain(model, TOKEN, sparsity=0.5).rows}
    dense = {name for name, row in rows.items() if explain_dense.NEVER_SPARSE in row.note}
    expected = {f"model.layers.{i}.mlp.{name}_proj" for i in (0, 1) for name in ("gate", "up", "down")}
    assert dense == expected
    for name in expected:
        assert rows[name].active_bytes == rows[name].num_bytes
        assert rows[name].kind == "gated_mlp"
    assert rows[f"{layer}self_attn.q_proj"].active_bytes < rows[f"{layer}self_attn.q_proj"].num_bytes


def test_a_table_that_does_not_know_the_shapes_changes_nothing(write_entries):
    write_entries((4096, 4096, NEVER))
    report = explain(quantized_tiny_llama(), TOKEN, sparsity=0.5)
    assert not any(explain_dense.NEVER_SPARSE in row.note for row in report.rows)


def test_on_the_cpu_no_launch_table_counts():
    assert explain_dense.cuda_index(next(find_linears(quantized_tiny_llama()))[1]) is None
