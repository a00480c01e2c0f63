"""torch.export programs: saved, loaded elsewhere, run."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import zigpass
from tests.models import SwiGlu
from zigpass.runtime import ZigpassError

LOAD = """
import sys, torch, zigpass.runtime
program = torch.export.load(sys.argv[1]).module()
inputs = torch.load(sys.argv[2])
print(sorted({str(node.target) for node in program.graph.nodes if "zigpass" in str(node.target)}))
torch.save([program(x) for x in inputs], sys.argv[3])
assert "transformers" not in sys.modules
"""


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = zigpass.quantize_(nn.Sequential(SwiGlu()), zigpass.ZigzagConfig(group_size=32), progress=False)
    for site in zigpass.find_sites(model).values():
        site.set_threshold(0.3)
    return model


def test_a_saved_program_runs_in_a_process_that_imports_only_the_runtime(model, tmp_path):
    program = zigpass.export_program(model, (torch.randn(2, 64),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    inputs = [torch.randn(rows, 64) for rows in (1, 5)]
    paths = [str(tmp_path / name) for name in ("program.pt2", "inputs.pt", "outputs.pt")]
    torch.export.save(program, paths[0])
    torch.save(inputs, paths[1])
    result = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['zigpass.gated_mlp.default']"
    for x, output in zip(inputs, torch.load(paths[2]), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(output, model(x), rtol=1e-5, atol=1e-6)


def test_a_program_for_one_row_is_sparse(model):
    x = torch.randn(1, 64)
    program = zigpass.export_program(model, (x,)).module()
    with torch.no_grad():
        sparse = model(x)
        torch.testing.assert_close(program(x), sparse, rtol=1e-5, atol=1e-6)
    with zigpass.dense(model), torch.no_grad():
        assert (model(x) - sparse).abs().max() > 1e-3


def test_models_without_packed_linears_are_refused():
    with pytest.raises(ZigpassError, match="Linear has no packed linears to export"):
        zigpass.export_program(nn.Linear(8, 8), (torch.randn(1, 8),))
