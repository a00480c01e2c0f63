"""Function bodies against the reference, in stock onnxruntime and in ONNX's own evaluator."""

import onnx
import onnx.reference
import pytest
import torch

from tests.onnx_nodes import node_model, run, session
from tests.weights import random_weight
from zigpass.onnx.activations import ACTIVATIONS
from zigpass.onnx.forms import OpName
from zigpass.onnx.weights import StoredWeight, pack_again
from zigpass.runtime import pack, unpack
from zigpass.runtime.reference import ACTIVATIONS as TORCH_ACTIVATIONS
from zigpass.runtime.reference import mask_inactive

CASES = {
    "sub_int": {"bits": 4, "scale_axis": "in", "zero_kind": "sub_int"},
    "sub_float": {"bits": 4, "scale_axis": "in", "zero_kind": "sub_float"},
    "add_float": {"bits": 4, "scale_axis": "in", "zero_kind": "add_float"},
    "two bits": {"bits": 2, "scale_axis": "in", "zero_kind": "sub_int"},
    "eight bits": {"bits": 8, "scale_axis": "in", "zero_kind": "sub_int"},
    "eight bits, minimum": {"bits": 8, "scale_axis": "in", "zero_kind": "add_float"},
    "eight bits, float zero": {"bits": 8, "scale_axis": "in", "zero_kind": "sub_float"},
    "bfloat16": {"bits": 4, "scale_axis": "in", "zero_kind": "add_float", "dtype": torch.bfloat16},
    "short last group": {"bits": 4, "scale_axis": "in", "zero_kind": "sub_int", "group_size": 48},
    "short last group, minimum": {"bits": 4, "scale_axis": "in", "zero_kind": "add_float", "group_size": 48},
    "column": {"bits": 4, "scale_axis": "out"},
    "column, eight bits": {"bits": 8, "scale_axis": "out"},
}
SHAPES = {"even": (96, 64), "odd": (301, 80)}


def expected(x, weights, thresholds, activation=None):
    dense = [weight.dequantize().double() for weight in weights]
    decode = x.shape[0] == 1

    def keep(value, threshold):
        return mask_inactive(value, threshold) if decode else value

    kept = keep(x, thresholds[0]).double()
    if activation is None:
        return kept @ dense[0].T
    gate, up, down = dense
    middle = TORCH_ACTIVATIONS[activation.torch_name](kept @ gate.T) * (kept @ up.T)
    return keep(middle, thresholds[1]) @ down.T


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("entries", ["one threshold", "one per entry"])
def test_linear(case, shape, entries):
    weight = random_weight(*shape, **case)
    k = shape[1]
    threshold = torch.full((1,), 0.5) if entries == "one threshold" else torch.linspace(0, 1.5, k)
    model = node_model(OpName(StoredWeight.of(pack(weight)).form), [weight], [threshold])
    onnx.checker.check_model(model, full_check=True)
    running, evaluator = session(model), onnx.reference.ReferenceEvaluator(model)
    for rows in (1, 3):
        x = torch.randn(rows, k, generator=torch.Generator().manual_seed(rows))
        want = expected(x, [weight], [threshold]).float()
        torch.testing.assert_close(run(running, x), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
        (y,) = evaluator.run(None, {"X": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS.values() if a.least_opset <= 21], ids=lambda a: a.name)
def test_gated_mlp(activation):
    weights = [random_weight(*shape, 4, "in", seed=seed) for seed, shape in enumerate([(96, 64), (96, 64), (64, 96)])]
    thresholds = [torch.full((1,), 0.5), torch.full((1,), 20.0)]
    model = node_model(OpName(StoredWeight.of(pack(weights[0])).form, activation), weights, thresholds)
    onnx.checker.check_model(model, full_check=True)
    for rows in (1, 3):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        want = expected(x, weights, thresholds, activation).float()
        torch.testing.assert_close(run(session(model), x), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


def parts_of(stored):
    return {part: stored.read(part) for part in stored.form.parts}


@pytest.mark.parametrize("n", [96, 300, 301, 384])
@pytest.mark.parametrize("band", [None, 128])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_parts_hold_the_whole_weight(case, n, band):
    weight = random_weight(n, 80, **case)
    stored = StoredWeight.of(pack(weight, band=band))
    again = pack_again(stored.form, stored.layout, parts_of(stored))
    assert again.layout == stored.layout
    assert torch.equal(unpack(again).dequantize(), weight.dequantize())


def test_a_zero_that_four_bits_cannot_hold_becomes_a_minimum():
    weight = random_weight(96, 64, 4, "in")
    weight.scales.zero[0, 0] = 16
    stored = StoredWeight.of(pack(weight))
    assert stored.form.zero == "AddFloat"
    again = pack_again(stored.form, stored.layout, parts_of(stored))
    assert torch.equal(unpack(again).dequantize(), weight.dequantize())


def test_stock_onnxruntime_runs_its_int4_kernel(tmp_path):
    weight = random_weight(96, 64, 4, "in")
    path = tmp_path / "optimized.onnx"
    session(
        node_model(OpName(StoredWeight.of(pack(weight)).form), [weight], [torch.zeros(1)]),
        optimized_model_filepath=str(path),
    )
    ops = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert "MatMulNBits" in ops
    assert "DequantizeLinear" not in ops
