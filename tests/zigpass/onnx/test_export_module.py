"""Exported modules against the modules, in stock onnxruntime."""

import onnx
import pytest
import torch
from torch import nn

import zigpass
from tests.models import SwiGlu
from tests.onnx_nodes import run_module, session
from tests.weights import random_weight
from zigpass.backend import ZigpassWarning
from zigpass.linear import ZigzagLinear
from zigpass.runtime import QuantizedWeight, pack
from zigpass.sites import Site

DYNAMIC_ROWS = ({0: torch.export.Dim.DYNAMIC},)


class TwoMatrices(nn.Module):
    """An MLP without a gate, with biases."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 96)
        self.fc2 = nn.Linear(96, 64)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class ActOrder(nn.Module):
    """A linear with permuted columns and a threshold for every input."""

    def __init__(self):
        super().__init__()
        weight = random_weight(96, 64, 4, "in")
        permuted = QuantizedWeight(weight.codes, 4, weight.scales, torch.randperm(64).int())
        site = Site("linear", "other", 64)
        site.set_threshold(torch.linspace(0, 1, 64))
        self.linear = ZigzagLinear(pack(permuted), None, site)

    def forward(self, x):
        return self.linear(x)


def quantized(model, threshold=0.3, **config):
    torch.manual_seed(0)
    model = zigpass.quantize_(model, zigpass.ZigzagConfig(**{"group_size": 32, **config}), progress=False)
    for site in zigpass.find_sites(model).values():
        site.set_threshold(threshold)
    return model


def export(model, tmp_path, x=None, **options):
    path = tmp_path / "module.onnx"
    x = torch.randn(3, 64) if x is None else x
    report = zigpass.export_onnx(
        model, path, example_inputs=(x,), dynamic_shapes=DYNAMIC_ROWS, progress=False, **options
    )
    onnx.checker.check_model(str(path), full_check=True)
    return path, report


def assert_same(model, path, dtype=torch.float32, tolerance=1e-5):
    running = session(str(path))
    for rows in (1, 4):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).to(dtype)
        with torch.no_grad():
            want = model(x)
        scale = want.abs().max().item()
        torch.testing.assert_close(run_module(running, x), want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_gated_mlp_is_one_node(tmp_path, bits):
    model = quantized(nn.Sequential(SwiGlu()), bits=bits)
    path, report = export(model, tmp_path)
    assert list(report.ops) == [f"GatedMlpSilu{bits}SubInt"]
    assert report.num_sites == 2
    assert report.num_linears == 3
    assert report.files == {path: path.stat().st_size}
    assert_same(model, path)


def test_biases_and_two_matrices_are_nodes_around_linears(tmp_path):
    model = quantized(nn.Sequential(TwoMatrices()))
    path, report = export(model, tmp_path)
    assert report.ops == {"Linear4SubInt": 2}
    assert_same(model, path)


def test_act_order_is_a_gather(tmp_path):
    model = ActOrder()
    path, _ = export(model, tmp_path)
    assert "Gather" in [node.op_type for node in onnx.load(path).graph.node]
    assert_same(model, path)


def test_half_precision_modules_keep_their_dtype(tmp_path):
    model = quantized(nn.Sequential(SwiGlu(), nn.LayerNorm(64))).half()
    path, _ = export(model, tmp_path, torch.randn(3, 64).half())
    assert_same(model, path, torch.float16, tolerance=5e-3)


def test_column_scales_are_right_and_come_with_a_warning(tmp_path):
    model = quantized(nn.Sequential(SwiGlu()), scale_axis="out")
    with pytest.warns(ZigpassWarning, match=r'3 linears run slowly.*scale_axis="in".*zigpass.ort.register'):
        path, report = export(model, tmp_path)
    assert len(report.slow) == 3
    assert_same(model, path)


def test_inlined_functions_leave_standard_ops_only(tmp_path):
    model = quantized(nn.Sequential(SwiGlu()))
    path, report = export(model, tmp_path, inline_functions=True)
    loaded = onnx.load(path)
    assert not loaded.functions
    assert {each.domain for each in loaded.opset_import} == {""}
    assert report.ops == {}
    assert_same(model, path)


def test_weights_stay_in_four_bits_and_names_stay(tmp_path):
    model = quantized(nn.Sequential(SwiGlu(64, 96)))
    path, _ = export(model, tmp_path)
    tensors = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    codes = tensors["0.gate_proj.codes"]
    assert codes.data_type == onnx.TensorProto.UINT4
    assert len(codes.raw_data) == 64 * 96 // 2
    assert onnx.numpy_helper.to_array(tensors["0.mlp_in.threshold"]).tolist() == [pytest.approx(0.3)]


def test_other_opsets(tmp_path):
    model = quantized(nn.Sequential(SwiGlu()))
    path, report = export(model, tmp_path, opset=23)
    loaded = onnx.load(path)
    assert report.opset == 23
    assert {each.version for each in loaded.opset_import if each.domain == ""} == {23}
    assert {each.version for each in loaded.functions[0].opset_import} == {23}


def test_large_tensors_go_to_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("zigpass.onnx.files.EXTERNAL_ABOVE", 1 << 10)
    model = quantized(nn.Sequential(SwiGlu()))
    path, report = export(model, tmp_path)
    assert set(report.files) == {path, tmp_path / "module.onnx.data"}
    assert_same(model, path)
