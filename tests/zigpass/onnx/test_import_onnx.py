"""MatMulNBits models with zigpass nodes in them, against the models they come from."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import zigpass
from zigpass.runtime import ZigpassError

HIDDEN, MIDDLE, BLOCK = 64, 96, 32
ACTIVATIONS = {
    "Silu": [("Sigmoid", ["gate"], "sigmoid", "", {}), ("Mul", ["gate", "sigmoid"], "act", "", {})],
    "QuickGelu": [("QuickGelu", ["gate"], "act", "com.microsoft", {"alpha": 1.0})],
    "Gelu": [("Gelu", ["gate"], "act", "", {})],
    "GeluTanh": [("Gelu", ["gate"], "act", "", {"approximate": "tanh"})],
    "MicrosoftGelu": [("Gelu", ["gate"], "act", "com.microsoft", {})],
    "FastGelu": [("FastGelu", ["gate"], "act", "com.microsoft", {})],
    "Relu": [("Relu", ["gate"], "act", "", {})],
}
SWAPPED = [("Sigmoid", ["gate"], "sigmoid", "", {}), ("Mul", ["sigmoid", "gate"], "act", "", {})]


def weight(name, n, k, zeros, bits=4):
    generator = np.random.default_rng(len(name) + n)
    groups = k // BLOCK
    tensors = {
        "codes": generator.integers(0, 256, (n, groups, BLOCK * bits // 8), np.uint8),
        "scale": (generator.random(n * groups) * 0.1).astype(np.float32),
        "zero": generator.integers(0, 256, n * -(-groups * bits // 8), np.uint8),
    }
    if not zeros:
        del tensors["zero"]
    return [numpy_helper.from_array(tensor, f"{name}.{part}") for part, tensor in tensors.items()]


def mlp(activation=ACTIVATIONS["Silu"], zeros=True, swapped=False, opset=21, **attributes):
    """A gated MLP as onnxruntime's quantizer writes it; extra attributes go to the down projection."""
    initializers, nodes = [], []

    def matmul(x, y, name, n, k, **extra):
        tensors = weight(name, n, k, zeros)
        initializers.extend(tensors)
        settings = {"N": n, "K": k, "bits": 4, "block_size": BLOCK, **extra}
        inputs = [x, *(tensor.name for tensor in tensors)]
        path = f"/model/layers.0/mlp/{name}_proj/MatMul_Q4"
        nodes.append(helper.make_node("MatMulNBits", inputs, [y], name=path, domain="com.microsoft", **settings))

    matmul("x", "gate", "gate", MIDDLE, HIDDEN)
    matmul("x", "up", "up", MIDDLE, HIDDEN)
    nodes += [helper.make_node(op, ins, [out], domain=domain, **given) for op, ins, out, domain, given in activation]
    nodes.append(helper.make_node("Mul", ["up", "act"] if swapped else ["act", "up"], ["middle"]))
    matmul("middle", "y", "down", HIDDEN, MIDDLE, **attributes)
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", HIDDEN]) for name in "xy"]
    graph = helper.make_graph(nodes, "mlp", value[:1], value[1:], initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def outputs(path, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options).run(None, {"x": x})[0]


def rewrite(model, tmp_path, **options):
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(model, source)
    report = zigpass.import_onnx(source, target, progress=False, **options)
    return report, source, target


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_at_threshold_zero_the_output_is_the_same_bit_for_bit(tmp_path, name, zeros):
    report, source, target = rewrite(mlp(ACTIVATIONS[name], zeros), tmp_path)
    assert report.ops == {f"GatedMlp{name}4NBits{'Zero' if zeros else ''}": 1}
    assert report.mlps == ["model.layers.0.mlp"]
    for rows in (1, 3):
        x = np.random.default_rng(rows).standard_normal((rows, HIDDEN)).astype(np.float32)
        np.testing.assert_array_equal(outputs(target, x), outputs(source, x))


@pytest.mark.parametrize("model", [mlp(SWAPPED), mlp(swapped=True)], ids=["x * sigmoid(x)", "act * up"])
def test_operands_may_be_in_either_order(tmp_path, model):
    assert rewrite(model, tmp_path)[0].ops == {"GatedMlpSilu4NBitsZero": 1}


@pytest.mark.parametrize("level", [0, 4])
def test_the_accuracy_level_is_kept(tmp_path, level):
    model = mlp()
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            node.attribute.append(helper.make_attribute("accuracy_level", level))
    _, source, target = rewrite(model, tmp_path)
    x = np.random.default_rng(0).standard_normal((1, HIDDEN)).astype(np.float32)
    np.testing.assert_array_equal(outputs(target, x), outputs(source, x))


def test_thresholds_mask_one_row_and_leave_several(tmp_path):
    _, source, target = rewrite(mlp(), tmp_path, thresholds=0.5)
    x = np.random.default_rng(0).standard_normal((3, HIDDEN)).astype(np.float32)
    np.testing.assert_array_equal(outputs(target, x), outputs(source, x))
    assert np.abs(outputs(target, x[:1]) - outputs(source, x[:1])).max() > 1e-3


def test_thresholds_of_the_model_in_torch_are_found_by_layer(tmp_path):
    from tests.models import quantized_tiny_llama, random_tokens

    thresholds = zigpass.calibrate(
        quantized_tiny_llama(), random_tokens(600), 0.4, allocation="uniform", window=64, num_windows=4, progress=False
    )
    _, _, target = rewrite(mlp(), tmp_path, thresholds=thresholds)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(target).graph.initializer}
    expected = thresholds.sites["model.layers.0.mlp.mlp_mid"].threshold.numpy()
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.mlp_mid.threshold"], expected)


def test_weights_stay_as_they_are_and_the_node_says_what_it_is(tmp_path):
    _, source, target = rewrite(mlp(), tmp_path)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (source, target)
    )
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    (node,) = onnx.load(target).graph.node
    assert node.name == "/model.layers.0/mlp/GatedMlp"
    layout = next(each.s.decode() for each in node.attribute if each.name == "down_layout")
    assert layout == "zigzag1:4bit:64x96:in32:sub_int:band128"


def test_unknown_attributes_are_refused_all_at_once(tmp_path):
    model = mlp(rotation=3)
    model.graph.node[0].attribute.append(helper.make_attribute("order", "rows"))
    with pytest.raises(ZigpassError) as raised:
        rewrite(model, tmp_path)
    assert "/model/layers.0/mlp/gate_proj/MatMul_Q4: order='rows'" in str(raised.value)
    assert "/model/layers.0/mlp/down_proj/MatMul_Q4: rotation=3" in str(raised.value)
    assert not (tmp_path / "target.onnx").exists()


def test_an_mlp_whose_weights_differ_is_left_with_a_reason(tmp_path):
    with pytest.raises(ZigpassError, match=r"no MLP can be rewritten:\n.*differ in accuracy_level \(0, 0, 4\)"):
        rewrite(mlp(accuracy_level=4), tmp_path)


def test_models_without_a_match(tmp_path):
    model = mlp()
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            node.domain = "elsewhere"
    with pytest.raises(ZigpassError, match="has no MatMulNBits nodes"):
        rewrite(model, tmp_path)
    with pytest.raises(ZigpassError, match="none of its 3 MatMulNBits nodes belong to a gated MLP"):
        rewrite(mlp([("Softplus", ["gate"], "act", "", {})]), tmp_path)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(ZigpassError, match=r"missing\.onnx: no such file"):
        zigpass.import_onnx(tmp_path / "missing.onnx", tmp_path / "m.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"not protobuf at all")
    with pytest.raises(ZigpassError, match=r"damaged\.onnx: damaged or not an ONNX file"):
        zigpass.import_onnx(tmp_path / "damaged.onnx", tmp_path / "m.onnx")
    source = tmp_path / "source.onnx"
    onnx.save(mlp(), source)
    with pytest.raises(ZigpassError, match="choose another name"):
        zigpass.import_onnx(source, source)
    with pytest.raises(ZigpassError, match="cannot be written"):
        zigpass.import_onnx(source, source / "m.onnx")
    with pytest.raises(ZigpassError, match="finite and not negative"):
        zigpass.import_onnx(source, tmp_path / "m.onnx", thresholds=-1.0)


def test_old_opsets_are_refused(tmp_path):
    with pytest.raises(ZigpassError, match="opset 14; the function bodies need 15"):
        rewrite(mlp(opset=14), tmp_path)
