"""Ways to be silently wrong inside torch.compile; each test fails when the trap is stepped in."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import SwiGlu, quantized_tiny_llama
from tests.passes.graphs import capture, count_ops, one_row, packed_block
from zigpass import passes
from zigpass.backend import ZigpassWarning, zigpass_backend
from zigpass.config import ZigzagConfig
from zigpass.linear import find_linears
from zigpass.quantize import quantize_

EAGER = {"inner": "eager"}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def packed_mlp(seed=0, threshold=0.3):
    torch.manual_seed(seed)
    mlp = quantize_(SwiGlu(bias=True), ZigzagConfig(group_size=32), progress=False)
    for linear in (mlp.gate_proj, mlp.down_proj):
        linear.site.set_threshold(threshold)
    return mlp.eval()


def assert_same(compiled, eager, x=None):
    x = one_row() if x is None else x
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-5, atol=1e-5)


class CountingBackend:
    """The backend, counting the graphs it compiles."""

    def __init__(self, inner="eager"):
        self.inner, self.count = inner, 0

    def __call__(self, gm, example_inputs):
        self.count += 1
        return zigpass_backend(gm, example_inputs, options={"inner": self.inner})


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_weights_are_inputs_so_that_layers_can_share_one_graph(inner):
    """A graph is guarded on shapes, not on which layer it came from: weights baked into it would serve all layers."""
    layers = [packed_mlp(seed, threshold=0.1 * seed) for seed in range(3)]
    expected = [copy.deepcopy(layer) for layer in layers]
    backend = CountingBackend(inner)
    for layer in layers:
        layer.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        for layer, eager in zip(layers, expected, strict=True):
            assert_same(layer, eager)
    assert backend.count == 1


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_changed_weights_are_used(inner):
    mlp = packed_mlp()
    compiled = torch.compile(mlp, backend="zigpass", options={"inner": inner})
    assert_same(compiled, mlp)
    mlp.load_state_dict(packed_mlp(seed=1).state_dict())  # in place
    assert_same(compiled, packed_mlp(seed=1))
    for (_, mine), (_, other) in zip(find_linears(mlp), find_linears(packed_mlp(seed=2)), strict=True):
        mine.codes, mine.scale, mine.zero, mine.bias = other.codes, other.scale, other.zero, other.bias  # new tensors
    assert_same(compiled, packed_mlp(seed=2))
    mlp.gate_proj = packed_mlp(seed=3).gate_proj  # a new module, with a threshold of its own
    assert_same(compiled, mlp)


def test_changed_threshold_is_used_without_a_recompile():
    mlp = packed_mlp(threshold=0.0)
    backend = CountingBackend()
    compiled = torch.compile(mlp, backend=backend)
    with torch.no_grad():
        dense = compiled(one_row())
    for threshold in (0.2, 0.5, 0.0):
        mlp.gate_proj.site.set_threshold(threshold)
        assert_same(compiled, mlp)
    mlp.gate_proj.site.set_threshold(10.0)  # nothing active: only biases are left
    with torch.no_grad():
        assert not torch.allclose(compiled(one_row()), dense)
    assert_same(compiled, mlp)
    assert backend.count == 1


class WritesCache(nn.Module):
    """Writes its projection into a cache with in-place methods whose results nobody uses."""

    def __init__(self):
        super().__init__()
        self.mlp = packed_mlp()
        self.register_buffer("cache", torch.zeros(1, 4, 64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.cache.index_copy_(1, self.count.reshape(1), x)
        self.count.add_(1)
        return self.mlp(x)


@pytest.mark.parametrize("options", [EAGER, {}], ids=["eager", "inductor"])
def test_writes_whose_result_is_unused_survive(options):
    """`Graph.eliminate_dead_code` takes them for dead and deletes them."""
    model = WritesCache()
    compiled = torch.compile(model, backend="zigpass", options={**options})
    with torch.no_grad():
        for step in range(3):
            compiled(torch.full((1, 1, 64), step + 1.0))
    assert int(model.count) == 3
    assert model.cache[0, :, 0].tolist() == [1.0, 2.0, 3.0, 0.0]


def test_rewriting_keeps_every_write_of_a_static_cache():
    from transformers import StaticCache

    model = quantized_tiny_llama()
    cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        model(torch.tensor([[1, 2]]), past_key_values=cache)
    gm = capture(model, torch.tensor([[5]]), past_key_values=cache)
    methods = [node.target for node in gm.graph.nodes if node.op == "call_method"]
    assert methods.count("index_copy_") == 4  # k and v of two layers
    passes.run(gm)
    repeating = {"expand", "reshape"}  # what `share_kv_heads` takes out
    left = [node.target for node in gm.graph.nodes if node.op == "call_method"]
    assert [name for name in left if name not in repeating] == [name for name in methods if name not in repeating]


@pytest.mark.parametrize("swapped", [False, True])
def test_halves_of_a_fused_projection_are_never_exchanged(swapped):
    """A matcher that ignores literals takes chunk[1] for chunk[0]."""

    def body(m, x):
        first, second = m.both(x).chunk(2, dim=-1)
        gate, up = (second, first) if swapped else (first, second)
        return m.down_proj(F.silu(gate) * up)

    block = packed_block(body, both=(64, 192))
    assert_same(torch.compile(block, backend="zigpass", options=EAGER), block)


@pytest.mark.parametrize("which", ["gate_proj", "up_proj", "down_proj"])
def test_no_bias_is_dropped(which):
    mlp = packed_mlp()
    for _, linear in find_linears(mlp):
        linear.bias.zero_()
    getattr(mlp, which).bias.fill_(3.0)
    without = copy.deepcopy(mlp)
    getattr(without, which).bias.zero_()
    compiled = torch.compile(mlp, backend="zigpass", options=EAGER)
    assert_same(compiled, mlp)
    with torch.no_grad():
        assert not torch.allclose(compiled(one_row()), without(one_row()), atol=1e-2)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_two_gelus_are_told_apart(approximate):
    """A matcher that ignores extra keywords takes gelu(x, approximate="tanh") for gelu(x)."""
    block = packed_block(lambda m, x: m.down_proj(F.gelu(m.gate_proj(x), approximate=approximate) * m.up_proj(x)))
    gm = capture(block, one_row())
    (match,) = passes.run(gm).matches
    assert match.activation == {"none": "gelu", "tanh": "gelu_tanh"}[approximate]
    x = 4 * one_row()
    other = {"none": "tanh", "tanh": "none"}[approximate]
    with torch.no_grad():
        expected = block(x)
        wrong = block.down_proj(F.gelu(block.gate_proj(x), approximate=other) * block.up_proj(x))
        gap = (expected - wrong).abs().max()
        assert gap > 1e-4  # the two can be told apart at this tolerance
        out = torch.compile(block, backend="zigpass", options=EAGER)(x)
    assert (out - expected).abs().max() < gap / 10


@pytest.mark.parametrize("options", [EAGER, {}], ids=["eager", "inductor"])
def test_gradients_are_never_lost(options):
    """An op without a formula would leave x.grad None and say nothing."""
    mlp, x = packed_mlp(), one_row().requires_grad_()
    compiled = torch.compile(mlp, backend="zigpass", options={**options})
    with pytest.warns(ZigpassWarning, match="captured with gradients enabled, so its 3 packed linears run uncompiled"):
        out = compiled(x)
    torch.testing.assert_close(out, mlp(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"has no backward; run the model under torch\.inference_mode"):
        out.sum().backward()


def test_float_model_trains_through_the_backend():
    mlp, x = SwiGlu(), one_row()
    expected = torch.autograd.grad(mlp(x).sum(), mlp.gate_proj.weight)[0]
    with pytest.warns(ZigpassWarning, match="compiled without zigpass"):
        out = torch.compile(mlp, backend="zigpass")(x)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), mlp.gate_proj.weight)[0], expected)


def test_graph_is_rewritten_again_once_gradients_are_off(monkeypatch):
    monkeypatch.setattr("zigpass.backend.below_autograd", lambda compiled: compiled)  # a graph's own forward
    mlp, x = packed_mlp(), one_row().requires_grad_()
    graphs = []

    def backend(gm, example_inputs):
        compiled = zigpass_backend(gm, example_inputs, options=EAGER)
        graphs.append(compiled.__self__)
        return compiled

    compiled = torch.compile(mlp, backend=backend)
    with pytest.warns(ZigpassWarning):
        compiled(x)
    with torch.no_grad():
        compiled(x)
    assert [count_ops(graph, "gated_mlp") for graph in graphs] == [0, 1]


def test_dynamos_own_graph_is_left_alone():
    """Dynamo reads its graph again when it builds guards."""
    seen = []

    def backend(gm, example_inputs):
        before = gm.code, list(gm.graph.nodes)
        compiled = zigpass_backend(gm, example_inputs, options=EAGER)
        seen.append(before == (gm.code, list(gm.graph.nodes)))
        return compiled

    assert_same(torch.compile(packed_mlp(), backend=backend), packed_mlp())
    assert seen == [True]


def test_rewritten_graph_has_the_same_inputs():
    """New inputs would need a source and a static mark each; the passes add none and drop none."""
    gm = capture(packed_mlp(), one_row())
    before = [(node.name, node._dynamo_source.name) for node in gm.graph.find_nodes(op="placeholder")]
    passes.run(gm)
    assert [(node.name, node._dynamo_source.name) for node in gm.graph.find_nodes(op="placeholder")] == before


def test_fused_nodes_carry_what_later_passes_read():
    gm = capture(packed_mlp(), one_row())
    passes.run(gm)
    (fused,) = [node for node in gm.graph.nodes if "gated_mlp" in str(node.target)]
    assert fused.meta["example_value"].shape == (1, 1, 64)
    assert fused.meta["nn_module_stack"] == {}  # of no single linear: the MLP itself is the whole graph
    assert fused.meta["stack_trace"]


def test_backend_keeps_no_weights_alive():
    """Nothing is cached, so there is nothing to reset and nothing to go stale."""
    mlp = packed_mlp()
    codes = weakref.ref(mlp.gate_proj.codes)
    assert_same(torch.compile(mlp, backend="zigpass", options=EAGER), mlp)
    del mlp
    torch._dynamo.reset()
    gc.collect()
    assert codes() is None
