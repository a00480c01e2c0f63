"""The backend by name: what it says, what it refuses, and that everything still runs."""

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import SwiGlu
from tests.passes.graphs import one_row, packed_block
from zigpass import passes
from zigpass.backend import ZigpassWarning, zigpass_backend
from zigpass.runtime import ZigpassError


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def swiglu(m, x):
    return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))


def compile_and_run(model, x, **options):
    with torch.no_grad():
        return torch.compile(model, backend="zigpass", options={"inner": "eager", **options})(x)


def test_torch_lists_it():
    assert "zigpass" in torch._dynamo.list_backends(exclude_tags=())


@pytest.fixture
def seen_by_autograd():
    """An operator `zigpass_test::probe`, and for each of its calls whether autograd had its layer of dispatch."""
    library, seen = torch.library.Library("zigpass_test", "FRAGMENT"), []
    library.define("probe(Tensor x) -> Tensor")

    def probe(x):
        seen.append(not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality))
        return x.clone()

    library.impl("probe", probe, "CPU")
    torch.library.register_fake("zigpass_test::probe", torch.empty_like, lib=library)
    yield seen
    library._destroy()


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_autograd_does_not_look_at_ops_of_a_graph_without_gradients(inner, seen_by_autograd):
    block, x = packed_block(lambda m, x: torch.ops.zigpass_test.probe(swiglu(m, x))), one_row()
    compile_and_run(block, x, inner=inner)
    with torch.no_grad():
        block(x)
    assert seen_by_autograd == [False, True]


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_prepared_model(inner):
    block, x = packed_block(swiglu), one_row()
    out = compile_and_run(block, x, inner=inner)
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


def test_mode_is_understood():
    block, x = packed_block(swiglu), one_row()
    with torch.no_grad():
        out = torch.compile(block, backend="zigpass", mode="max-autotune-no-cudagraphs")(x)
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


def test_one_line_is_logged_per_compile(caplog):
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"):
        compile_and_run(packed_block(swiglu), one_row())
    (record,) = [record for record in caplog.records if record.name == "zigpass.compile_log"]
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("matched 1 gated_mlp; 2 sites; 0.0")


def test_log_of_a_prefill_graph_says_that_it_runs_dense(caplog):
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"):
        compile_and_run(packed_block(swiglu), torch.randn(1, 5, 64))
    assert "matched nothing" in caplog.text
    assert "3 packed linears run dense (more than one row, or an unknown number)" in caplog.text


def test_model_without_a_match_runs_with_one_warning():
    model, x = SwiGlu(), one_row()
    with pytest.warns(ZigpassWarning) as caught:
        out = compile_and_run(model, x)
    torch.testing.assert_close(out, model(x))
    (warning,) = [item for item in caught if issubclass(item.category, ZigpassWarning)]
    assert str(warning.message) == (
        "zigpass found nothing to speed up in this graph: "
        "gate_proj, up_proj, down_proj are not quantized: call zigpass.quantize_(model, ...) first"
    )


def test_warning_lists_a_few_reasons_and_counts_the_rest():
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(7)])
    with pytest.warns(ZigpassWarning, match=r"0 is not quantized; .*4 is not quantized; and 2 more$"):
        compile_and_run(model, torch.randn(1, 8))


def test_require_match_raises_the_reasons():
    with pytest.raises(ZigpassError, match=r"found nothing to speed up .* not quantized: call zigpass.quantize_"):
        compile_and_run(SwiGlu(), one_row(), require_match=True)


@pytest.mark.parametrize("rows", [1, 5])
def test_nothing_to_complain_about(rows):
    """A prepared model, decoding or not, and graphs without linears."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZigpassWarning)
        compile_and_run(packed_block(swiglu), torch.randn(1, rows, 64), require_match=True)
        compile_and_run(nn.ReLU(), torch.randn(rows, 8), require_match=True)


def test_pass_that_is_switched_off(caplog):
    block, x = packed_block(swiglu), one_row()
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"):
        out = compile_and_run(block, x, passes={"fuse_gated_mlp": False, "fuse_qkv": False})
    assert "matched 3 linear" in caplog.text
    torch.testing.assert_close(out, block(x), rtol=1e-5, atol=1e-5)


def test_graph_breaks_give_several_graphs_that_all_work():
    def body(m, x):
        y = swiglu(m, x)
        torch._dynamo.graph_break()
        return swiglu(m, y)

    block, x = packed_block(body), one_row()
    out = compile_and_run(block, x, require_match=True)
    torch.testing.assert_close(out, block(x), rtol=1e-4, atol=1e-4)


class Regions(nn.Module):
    """Three layers through one region that is compiled once."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(packed_block(swiglu, threshold=0.1 * index) for index in range(3))
        for index, layer in enumerate(self.layers):
            layer.down_proj.scale.mul_(1 + index)
        self.call = torch.compiler.nested_compile_region(swiglu)

    def forward(self, x):
        for layer in self.layers:
            x = self.call(layer, x)
        return x


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_subgraphs_are_rewritten_too(inner, caplog):
    model, x = Regions(), one_row()
    with caplog.at_level(logging.INFO, logger="zigpass.compile_log"):
        out = compile_and_run(model, x, inner=inner, require_match=True)
    with torch.no_grad():
        expected = x
        for layer in model.layers:
            expected = swiglu(layer, expected)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert "matched 1 gated_mlp;" in caplog.text


def test_dynamos_subgraphs_are_left_alone():
    same = []

    def backend(gm, example_inputs):
        before = [child.code for child in passes.subgraphs(gm).values()]
        compiled = zigpass_backend(gm, example_inputs, options={"inner": "eager"})
        same.append(before == [child.code for child in passes.subgraphs(gm).values()] != [])
        return compiled

    with torch.no_grad():
        torch.compile(Regions(), backend=backend)(one_row())
    assert same == [True]
