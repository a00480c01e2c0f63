"""The same passes through Inductor's own hook."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import fresh_cache

from tests.models import quantized_tiny_llama
from tests.passes.graphs import one_row, packed_block
from zigpass.backend_error import BackendError
from zigpass.inductor_pass import ZigzagPass, source_digest

# What comes from Inductor's cache was rewritten earlier; the pass does not run for it.
pytestmark = pytest.mark.usefixtures("no_compile_caches")


def swiglu(m, x):
    return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))


def compile_with(model, hook):
    return torch.compile(model, options={"pre_grad_custom_pass": hook}, fullgraph=True)


def test_llama_decodes_through_plain_inductor():
    model, hook, tokens = quantized_tiny_llama(0.3, layers=1), ZigzagPass(), torch.tensor([[5]])
    with torch.inference_mode():
        logits = compile_with(model, hook)(tokens).logits
        torch.testing.assert_close(logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    (context,) = hook.contexts
    assert context.kinds == {"gated_mlp": 1, "qkv": 1, "linear": 1}
    assert str(hook) == "ZigzagPass: 1 gated_mlp, 1 qkv, 1 linear"


def test_switches():
    block, hook = packed_block(swiglu), ZigzagPass({"fuse_gated_mlp": False})
    with torch.inference_mode():
        torch.testing.assert_close(compile_with(block, hook)(one_row()), block(one_row()), rtol=1e-5, atol=1e-5)
    assert hook.contexts[0].kinds == {"qkv": 1, "linear": 1}
    with pytest.raises(BackendError, match="did you mean 'fuse_qkv'"):
        ZigzagPass({"fuse_kqv": False})


def test_uuid_names_sources_and_switches():
    assert ZigzagPass().uuid() == ZigzagPass().uuid()
    assert ZigzagPass().uuid() != ZigzagPass({"fuse_qkv": False}).uuid()
    assert ZigzagPass({"fuse_qkv": True}).uuid() == ZigzagPass().uuid()
    assert pickle.loads(pickle.dumps(ZigzagPass().uuid())) == ZigzagPass().uuid()


def test_uuid_follows_the_sources_of_the_passes(tmp_path, monkeypatch):
    for name in ("a.py", "b.py", "notes.md"):
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    before = source_digest()
    (tmp_path / "notes.md").write_text("other")
    assert source_digest() == before
    (tmp_path / "b.py").write_text("x = 2")
    assert source_digest() != before


@pytest.fixture
def _empty_cache():
    with fresh_cache():
        yield


@pytest.mark.usefixtures("_empty_cache")
def test_inductors_cache_tells_switches_apart():
    """The rewritten graph is what is cached: another set of switches must not get it."""
    block, hooks = packed_block(swiglu), [ZigzagPass(), ZigzagPass({"fuse_gated_mlp": False}), ZigzagPass()]
    for hook in hooks:
        torch._dynamo.reset()
        with torch.inference_mode(), torch.compiler.config.patch(force_disable_caches=False):
            out = compile_with(block, hook)(one_row())
            torch.testing.assert_close(out, block(one_row()), rtol=1e-5, atol=1e-5)
    assert [len(hook.contexts) for hook in hooks] == [1, 1, 0]  # the third comes from the cache


def test_no_rewriting_when_gradients_are_wanted():
    block, hook = packed_block(swiglu), ZigzagPass()
    with pytest.raises(Exception, match="has no backward"):
        compile_with(block, hook)(one_row().requires_grad_())
    assert not hook.contexts
