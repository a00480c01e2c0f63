"""The native ops in onnxruntime, against the function bodies in stock onnxruntime."""

import gc
import importlib.util
import json
import threading
import warnings

import onnx
import onnxruntime
import pytest
import torch

import zigpass
from tests.onnx_nodes import node_model, run, session
from tests.weights import random_weight
from zigpass.backend import ZigpassWarning
from zigpass.onnx.activations import ACTIVATIONS
from zigpass.onnx.forms import OpName
from zigpass.onnx.weights import StoredWeight
from zigpass.ort import custom_ops, extensions, shim
from zigpass.runtime import ZigpassError, pack

ROUTES = [
    pytest.param(
        "compiler",
        marks=pytest.mark.skipif(shim.compiler() is None, reason="no C compiler"),
    ),
    pytest.param(
        "extensions",
        marks=pytest.mark.skipif(not extensions.has_extensions(), reason="onnxruntime-extensions is not installed"),
    ),
]
WEIGHTS = {
    "sub_int": {"bits": 4, "scale_axis": "in"},
    "add_float": {"bits": 4, "scale_axis": "in", "zero_kind": "add_float"},
    "eight bits": {"bits": 8, "scale_axis": "in"},
    "two bits": {"bits": 2, "scale_axis": "in", "zero_kind": "sub_float"},
    "column": {"bits": 4, "scale_axis": "out"},
}


def linear_model(threshold=0.5, n=301, k=80, **case):
    weight = random_weight(n, k, **{"bits": 4, "scale_axis": "in", **case})
    return node_model(OpName(StoredWeight.of(pack(weight)).form), [weight], [torch.as_tensor(threshold).reshape(-1)])


def mlp_model(activation="Silu"):
    weights = [random_weight(*shape, 4, "in", seed=seed) for seed, shape in enumerate([(96, 64), (96, 64), (64, 96)])]
    op = OpName(StoredWeight.of(pack(weights[0])).form, ACTIVATIONS[activation])
    return node_model(op, weights, [torch.full((1,), 0.5), torch.full((1,), 20.0)])


def native(model, tmp_path, route, options=None):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return zigpass.ort.session(path, options, route)


def assert_same(model, running, k, rows):
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(rows))
    want = run(session(model), x)
    torch.testing.assert_close(run(running, x), want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_linear(tmp_path, case, route):
    model = linear_model(**case)
    running = native(model, tmp_path, route)
    for rows in (1, 3, 40):
        assert_same(model, running, 80, rows)


@pytest.mark.parametrize("route", ROUTES)
def test_a_threshold_for_every_input(tmp_path, route):
    model = linear_model(torch.linspace(0, 1.5, 80))
    assert_same(model, native(model, tmp_path, route), 80, 1)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("activation", ["Silu", "Gelu", "GeluTanh", "Relu", "Relu2", "QuickGelu", "FastGelu"])
def test_gated_mlp(tmp_path, activation, route):
    model = mlp_model(activation)
    running = native(model, tmp_path, route)
    for rows in (1, 3, 40):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        want = run(session(model), x)
        torch.testing.assert_close(run(running, x), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("route", ROUTES)
def test_the_native_op_runs_and_not_the_function_body(tmp_path, route):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    running = native(mlp_model(), tmp_path, route, options)
    run(running, torch.randn(1, 64))
    with open(running.end_profiling()) as file:
        ops = {event["args"]["op_name"] for event in json.load(file) if "op_name" in event.get("args", {})}
    prefix = "Zigpass" if route == "extensions" else ""
    assert f"{prefix}GatedMlpSilu4SubInt" in ops
    assert "MatMulNBits" not in ops
    assert "MatMul" not in ops


@pytest.mark.skipif(shim.compiler() is None, reason="no C compiler")
class TestCompiled:
    def test_one_line_is_enough(self, tmp_path):
        path = tmp_path / "model.onnx"
        onnx.save(linear_model(), path)
        options = onnxruntime.SessionOptions()
        assert zigpass.ort.register(options) == "compiler"
        assert_same(linear_model(), onnxruntime.InferenceSession(str(path), options), 80, 1)

    def test_inactive_weights_are_not_read(self, tmp_path):
        # A weight that is not read cannot spoil the result, however large its scale is.
        weight = random_weight(128, 64, 4, "in", dtype=torch.float32)
        weight.scales.scale[:, 1] = float("inf")
        model = node_model(OpName(StoredWeight.of(pack(weight)).form), [weight], [torch.full((1,), 0.5)])
        x = torch.ones(1, 64)
        x[0, 32:] = 0.1
        assert torch.isfinite(run(native(model, tmp_path, "compiler"), x)).all()
        assert not torch.isfinite(run(session(model), x)).all()

    def test_sessions_give_their_weights_back(self, tmp_path):
        before = len(custom_ops._nodes)
        running = native(linear_model(), tmp_path, "compiler")
        run(running, torch.randn(1, 80))
        assert len(custom_ops._nodes) == before + 1
        del running
        gc.collect()
        assert len(custom_ops._nodes) == before

    def test_threads_may_share_a_session(self, tmp_path):
        running = native(mlp_model(), tmp_path, "compiler")
        inputs = [torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
        want = [run(running, x) for x in inputs]
        wrong = []

        def work(index):
            results = (run(running, inputs[index]) for _ in range(50))
            wrong.extend(index for result in results if not torch.equal(result, want[index]))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_no_rows(self, tmp_path):
        assert run(native(linear_model(), tmp_path, "compiler"), torch.randn(0, 80)).shape == (0, 301)

    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            ("nonsense", "not a zigzag layout"),
            ("zigzag9:4bit:301x80:in32:sub_int:band384", "layout version 9"),
        ],
    )
    def test_a_foreign_layout_is_an_error_when_the_file_is_opened(self, tmp_path, spec, reason):
        model = linear_model()
        next(each for each in model.graph.node[0].attribute if each.name == "layout").s = spec.encode()
        with pytest.raises(Exception, match=reason):
            native(model, tmp_path, "compiler")

    def test_a_layout_of_another_weight_is_an_error_when_it_runs(self, tmp_path):
        model = linear_model()
        spec = b"zigzag1:4bit:301x80:in16:sub_int:band384"
        next(each for each in model.graph.node[0].attribute if each.name == "layout").s = spec
        with pytest.raises(Exception, match=r"zero has 452 bytes, .* needs 753"):
            run(native(model, tmp_path, "compiler"), torch.randn(1, 80))

    def test_a_threshold_of_another_size_is_an_error(self, tmp_path):
        running = native(linear_model(torch.ones(3)), tmp_path, "compiler")
        with pytest.raises(Exception, match="a threshold has 1 entry or as many as the input"):
            run(running, torch.randn(1, 80))


def test_without_a_compiler_and_extensions_the_bodies_run_with_one_warning(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    onnx.save(linear_model(), path)
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr("zigpass.ort.registration.has_extensions", lambda: False)
    shim.shim_library.cache_clear()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert zigpass.ort.register(options) == "none"
    shim.shim_library.cache_clear()
    (warning,) = [each for each in caught if issubclass(each.category, ZigpassWarning)]
    assert "no native ops for onnxruntime: there is no C compiler" in str(warning.message)
    assert "onnxruntime-extensions is not installed" in str(warning.message)
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    assert_same(linear_model(), onnxruntime.InferenceSession(str(path), options), 80, 1)


def test_a_compiler_that_fails_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "false")
    shim.shim_library.cache_clear()
    with pytest.raises(ZigpassError, match=r"false -shared .* failed"):
        zigpass.ort.register(onnxruntime.SessionOptions(), "compiler")
    shim.shim_library.cache_clear()


def test_routes_that_are_not_there(tmp_path):
    with pytest.raises(ZigpassError, match='route must be "compiler" or "extensions"'):
        zigpass.ort.register(onnxruntime.SessionOptions(), "telepathy")
    with pytest.raises(ZigpassError, match="no such file"):
        zigpass.ort.session(tmp_path / "missing.onnx")
    if importlib.util.find_spec("onnxruntime_extensions") is None:
        with pytest.raises(ZigpassError, match="onnxruntime-extensions is not installed"):
            zigpass.ort.register(onnxruntime.SessionOptions(), "extensions")
