import json

import pytest

from tests.toys import build
from zigpass.inspection import inspect_model
from zigpass.site_profile import profile_sites
from zigpass.tools.inspect_data import Inspected
from zigpass.tools.model_explorer import label, write_model_explorer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    model, args = build()
    inspection = inspect_model(model, args, {})
    sites = profile_sites(model, [lambda: model(*args)])
    folder = tmp_path_factory.mktemp("explorer")
    write_model_explorer(Inspected("toy", inspection, sites, "", None), folder)
    graphs, overlay = (json.loads((folder / f"{name}.json").read_text()) for name in ("graphs", "sparsity"))
    return {graph["id"]: graph["nodes"] for graph in graphs["graphs"]}, overlay, {site.name: site for site in sites}


def test_nodes_have_their_place_in_the_model_and_edges_to_nodes_that_exist(files):
    graphs, _, _ = files
    assert list(graphs) == ["graph 1, captured", "graph 1, rewritten"]
    for nodes in graphs.values():
        ids = [node["id"] for node in nodes]
        assert len(set(ids)) == len(ids)
        for position, node in enumerate(nodes):
            assert {edge["sourceNodeId"] for edge in node["incomingEdges"]} <= set(ids[:position])
    (mlp,) = [node for node in graphs["graph 1, rewritten"] if node["id"] == "gated_mlp"]
    assert (mlp["label"], mlp["namespace"]) == ("zigpass.gated_mlp", "layers/0")
    assert {"key": "zigpass", "value": "gated_mlp"} in mlp["attrs"]
    assert [node["id"] for node in graphs["graph 1, captured"] if node["namespace"] == "inputs"] == ["l_args_0_"]
    assert any(attribute["key"] == "refused" for node in graphs["graph 1, rewritten"] for attribute in node["attrs"])


def test_overlay_has_the_sparsity_of_every_node_with_a_threshold(files):
    graphs, overlay, sites = files
    captured, rewritten = (overlay[name]["results"] for name in graphs)
    assert len(captured) == 6
    assert len(rewritten) == 3
    entry, middle = sites["layers.0.mlp_in"], sites["layers.0.mlp_mid"]
    mean = (entry.realized_sparsity * 64 + middle.realized_sparsity * 96) / 160
    assert rewritten["gated_mlp"]["value"] == pytest.approx(mean)
    for name in graphs:
        assert overlay[name]["results"].keys() <= {node["id"] for node in graphs[name]}


@pytest.mark.parametrize(
    ("call", "text"),
    [("zigpass.qkv(x, [w])", "zigpass.qkv"), ("x.view((1, 2))", "x.view"), ("a + b", "a + b"), ("input", "input")],
)
def test_label(call, text):
    assert label(call) == text
