"""Calls that do not go through the dispatcher."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import quantized_tiny_llama
from zigpass.inductor_pass import ZigzagPass
from zigpass.runtime.ops import OPS

pytestmark = pytest.mark.usefixtures("no_compile_caches")


def run_compiled(**how):
    """Logits of a decoding step, those of the model as it is, and Inductor's code."""
    model, tokens = quantized_tiny_llama(0.3, layers=1), torch.tensor([[5]])
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, **how)
        output, (code,) = run_and_get_code(lambda: compiled(tokens).logits)
        again = compiled(tokens).logits
        assert torch.equal(output, again)
        return output, model(tokens).logits, code, lambda: compiled(tokens).logits


@pytest.mark.parametrize("how", [
    {"backend": "zigpass"},
    {"options": {"pre_grad_custom_pass": ZigzagPass()}},
], ids=["backend", "hook"])  # fmt: skip
def test_inductors_code_calls_the_implementations(how):
    output, expected, code, _ = run_compiled(**how)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for op in OPS:
        assert f"torch.ops.zigpass.{op}.direct_cpu(" in code
        assert f"torch.ops.zigpass.{op}.default(" not in code


def test_a_profiler_sees_the_operators():
    *_, step = run_compiled(backend="zigpass")
    with torch.inference_mode():
        expected = step()
        with torch.profiler.profile() as profile:
            profiled = step()
        assert {f"zigpass::{op}" for op in OPS} <= {event.name for event in profile.events()}
        assert torch.equal(profiled, expected)


class Watched(TorchDispatchMode):
    """Keeps the names of the operators that it saw."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operators():
    linear = quantized_tiny_llama(0.3, layers=1).model.layers[0].self_attn.o_proj
    x = torch.randn(1, linear.in_features)
    with torch.inference_mode(), Watched() as watched:
        torch.ops.zigpass.linear.direct_cpu(x, linear.weight_tensors, None, None, linear.layout_spec)
    assert watched.names == ["zigpass.linear.default"]


def test_cpp_wrappers_keep_their_own_calls():
    output, expected, code, _ = run_compiled(backend="zigpass", options={"cpp_wrapper": True})
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert "direct_cpu" not in code
