"""Input and circumstances that no kernel can work with, on a GPU: refused before a launch, or reported after one."""

import subprocess
import sys

import pytest
import torch

from tests.test_packaging import ROOT
from zigpass.runtime import ZigpassError
from zigpass.runtime.cuda import calls, plan, tables
from zigpass.runtime.cuda.arguments import Parameters
from zigpass.runtime.cuda.device import get_device
from zigpass.runtime.cuda.launch import Function
from zigpass.runtime.cuda.specialization import LaunchConfig
from zigpass.runtime.cuda.tables import NEVER, Entry, write_table

from .operands import DEVICE, check_linear, mlp_operands, packed, random_x

pytestmark = pytest.mark.cuda

# A device-side assertion breaks the context for good, so this runs in a process of its own.
BROKEN_CONTEXT = """
import torch
from tests.runtime.cuda.operands import packed, random_x
weight, spec = packed(256, 512)
x = random_x(512)
call = lambda: torch.ops.zigpass.linear(x, weight, None, None, spec)
call()
torch.cuda.synchronize()
torch._assert_async(torch.zeros(1, device="cuda"))
try:
    torch.cuda.synchronize()
except RuntimeError:
    pass
for _ in range(2):
    try:
        call()
    except ValueError as error:
        print("reported:", error)
"""


def forget_plans():
    plan.get_plan.cache_clear()
    calls.forget()


def test_a_context_that_an_earlier_kernel_broke_is_reported_by_every_call():
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_CONTEXT], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    reported = [line for line in done.stdout.splitlines() if line.startswith("reported:")]
    assert len(reported) == 2, done.stdout + done.stderr
    for line in reported:
        assert "CUDA_ERROR_ASSERT" in line
        assert "start the process again" in line


def test_a_launch_that_the_driver_refuses_is_reported_and_the_next_one_runs():
    weight, spec = packed(256, 512)
    x = random_x(512)
    check_linear(x, weight, spec)
    device, macros = get_device(0), {"PIECE": 128, "AT_ONCE": 8}
    function = Function(device, "gather.cu", "zigzag_gather", macros, 4096, 0, False)
    with pytest.raises(ZigpassError, match=r"launching zigzag_gather of gather\.cu failed with CUDA_ERROR_"):
        function.launch((1, 1), 0, Parameters((0, 0, 0), (0, 0, 0)).address)
    check_linear(x, weight, spec)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda x: x.double(), r"x has dtype torch\.float64"),
        (0, lambda x: x[..., 1:], r"x has 1023 features, the weight .* has K=1024"),
        (0, lambda x: x.cpu(), r"codes of .* is on cuda:0, x on cpu"),
        (1, lambda gate: [gate[0].cpu(), *gate[1:]], r"codes of .* is on cpu, x on cuda:0"),
        (2, lambda up: [up[0][:-128], *up[1:]], r"needs .* code words and .* scales"),
        (3, lambda down: down[:2], r"needs 3 tensors, got 2"),
        (4, lambda bias: torch.zeros(3, device=DEVICE), r"bias of .* is torch\.float32 .3,."),
        (7, lambda threshold: threshold.cpu(), r"threshold is torch\.float32 on cpu"),
        (8, lambda threshold: threshold.double(), r"threshold is torch\.float64 on cuda:0"),
        (8, lambda threshold: threshold.repeat(7), r"threshold has 7 entries, .* takes 1 or 2816"),
        (12, lambda activation: "tanh", r"unknown activation 'tanh'"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_gated_mlp_refuses_what_does_not_fit(position, change, message, warm):
    tensors, specs = mlp_operands()
    threshold = torch.zeros(1, device=DEVICE)
    operands = [random_x(1, 1024), *tensors, threshold, threshold, *specs, "silu"]
    if warm:
        torch.ops.zigpass.gated_mlp(*operands)
    bad = [change(operand) if index == position else operand for index, operand in enumerate(operands)]
    with pytest.raises(ZigpassError, match=message):
        torch.ops.zigpass.gated_mlp(*bad)
    torch.cuda.synchronize()
    torch.ops.zigpass.gated_mlp(*operands)


@pytest.mark.parametrize(
    "make_x", [lambda: random_x(512, 3)[:, 1], lambda: random_x(513)[1:], lambda: random_x(1, 512, 2)[..., 0]]
)
def test_x_that_is_not_contiguous_or_not_aligned_is_read_all_the_same(make_x):
    x = make_x()
    weight, spec = packed(256, x.shape[-1])
    for _ in range(2):
        check_linear(x, weight, spec)


def test_x_without_rows():
    tensors, specs = mlp_operands()
    out = torch.ops.zigpass.gated_mlp(random_x(0, 1024), *tensors, None, None, *specs, "silu")
    assert out.shape == (0, 1024)


def test_a_shape_that_sparsity_never_helps_gives_the_dense_bits():
    arch = get_device(0).arch
    entry = Entry(4, "in", 1, 1536, 1408, LaunchConfig(4, 4, 1, 2), NEVER)
    write_table(tables.user_folder() / f"sm_{arch}.json", [entry], "a GPU", "a test")
    forget_plans()
    try:
        weight, spec = packed(1536, 1408, band=512, seed=77)
        x, threshold = random_x(1408), torch.full((1,), 0.7, device=DEVICE)
        dense, given = (torch.ops.zigpass.linear(x, weight, None, t, spec) for t in (None, threshold))
        assert torch.equal(dense, given)
        other, other_spec = packed(1536, 1280, band=512, seed=78)
        x = random_x(1280)
        assert not torch.equal(
            torch.ops.zigpass.linear(x, other, None, threshold, other_spec),
            torch.ops.zigpass.linear(x, other, None, None, other_spec),
        )
    finally:
        forget_plans()
