import json

import numpy as np
import pytest
from typer.testing import CliRunner

from zigpass.cli import app
from zigpass.runtime import ZigpassError
from zigpass.tools.inspect_onnx import read_nodes

onnx = pytest.importorskip("onnx")


def matmul(name, bits, constant=True):
    weight = f"{name}_B" if constant else "x"
    return onnx.helper.make_node(
        "MatMulNBits", ["x", weight, f"{name}_scales"], [f"{name}_y"], name, domain="com.microsoft",
        K=64, N=32, bits=bits, block_size=32,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    nodes = [
        matmul("good", 4),
        matmul("three_bits", 3),
        matmul("computed", 4, constant=False),
        onnx.helper.make_node("gated_mlp", ["x", "good_B"], ["z"], "mlp", domain="zigpass", activation="silu"),
        onnx.helper.make_node("Relu", ["x"], ["r"], "relu"),
    ]
    held = [
        onnx.numpy_helper.from_array(np.zeros((32, 2, 16), np.uint8), "good_B"),
        onnx.numpy_helper.from_array(np.zeros((32, 2, 12), np.uint8), "three_bits_B"),
        *(
            onnx.numpy_helper.from_array(np.ones(64, np.float32), f"{name}_scales")
            for name in ("good", "three_bits", "computed")
        ),
    ]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64])
    graph = onnx.helper.make_graph(nodes, "toy", [x], [], held)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "toy.onnx")
    return tmp_path / "toy.onnx"


def test_own_nodes_and_candidates_are_listed_with_reasons(path):
    nodes = {node.name: node for node in read_nodes(path)}
    assert nodes.keys() == {"good", "three_bits", "computed", "mlp"}
    assert nodes["good"].note == ""
    assert nodes["good"].num_bytes == 32 * 2 * 16 + 64 * 4
    assert nodes["good"].attributes == {"K": 64, "N": 32, "bits": 4, "block_size": 32}
    assert nodes["three_bits"].note == "3 bits; zigpass packs 2, 4, 8"
    assert nodes["computed"].note == "its weight x is computed, not a constant of the file"
    assert (nodes["mlp"].op, nodes["mlp"].attributes) == ("zigpass.gated_mlp", {"activation": "silu"})


def test_command(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shown = CliRunner().invoke(app(), ["inspect", str(path)], catch_exceptions=False).stdout
    assert "1 zigpass nodes, 1 of 3 MatMulNBits nodes could become one" in shown
    assert "near miss: three_bits: 3 bits; zigpass packs 2, 4, 8" in shown
    printed = CliRunner().invoke(app(), ["inspect", str(path), "--json", "-"], catch_exceptions=False).stdout
    assert [node["name"] for node in json.loads(printed)["nodes"]] == ["good", "three_bits", "computed", "mlp"]


def test_what_is_wrong_is_said(path, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ZigpassError, match="not an ONNX model"):
        read_nodes(tmp_path / "broken.onnx")
    with pytest.raises(ZigpassError, match="--html: an ONNX file has nodes and no passes"):
        CliRunner().invoke(app(), ["inspect", str(path), "--html", "x.html"], catch_exceptions=False)
