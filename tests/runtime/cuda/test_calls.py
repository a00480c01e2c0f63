"""Prepared calls: what a warm call launches, and when it must be prepared again. The driver is a fake."""

import ctypes
import gc
import threading
import weakref

import pytest
import torch

from tests.weights import random_weight
from zigpass.runtime import ZigpassError, pack, reference
from zigpass.runtime.cuda import calls, operators, plan

from .fake_driver import Status, install


@pytest.fixture
def driver(monkeypatch):
    fake = install(monkeypatch)
    yield fake
    plan.get_plan.cache_clear()
    calls.forget()


def packed(n=256, k=512, seed=0, **scales):
    result = pack(random_weight(n, k, 4, "in", seed=seed, **scales), 128)
    return list(result.tensors), result.layout.spec


def addresses(arguments, index=0):
    weight = arguments.weights[index]
    return [weight.codes, weight.scale, weight.zero]


def pointers(tensors):
    return [tensor.data_ptr() for tensor in tensors]


def mlp_of(k=512, middle=768):
    parts = [packed(middle, k, 1), packed(middle, k, 2), packed(k, middle, 3)]
    return [tensors for tensors, _ in parts], [spec for _, spec in parts]


def test_a_warm_linear_prepares_nothing_and_launches_with_the_addresses_of_this_call(driver):
    weight, spec = packed()
    bias = torch.zeros(256)
    for count in range(3):
        x, threshold = torch.randn(1, 512), torch.zeros(1)
        out = operators.linear(x, weight, bias, threshold, spec)
        gemv, combine = driver.launched[-2:]
        assert (gemv.name, combine.name) == ("zigzag_gemv", "zigzag_combine")
        for arguments in (gemv.arguments, combine.arguments):
            assert addresses(arguments) == pointers(weight)
            assert (arguments.x, arguments.threshold, arguments.per_channel) == (x.data_ptr(), threshold.data_ptr(), 0)
            assert (arguments.weights[0].out, arguments.weights[0].bias) == (out.data_ptr(), bias.data_ptr())
        assert (out.shape, out.dtype) == ((1, 256), torch.float32)
        assert len(driver.launched) == 2 * (count + 1)
    assert driver.functions == 2
    assert len(calls.linears_calls.known) == 1


def test_a_warm_qkv_has_an_output_for_each_weight(driver):
    parts = [packed(n, 512, n) for n in (256, 128, 100)]
    weights, specs = [tensor for tensors, _ in parts for tensor in tensors], [spec for _, spec in parts]
    for _ in range(2):
        x = torch.randn(512, dtype=torch.bfloat16)
        outs = operators.qkv(x, weights, [None] * 3, None, specs)
        arguments = driver.launched[-1].arguments
        assert [out.shape for out in outs] == [(256,), (128,), (100,)]
        assert [arguments.weights[index].out for index in range(3)] == pointers(outs)
        assert [addresses(arguments, index) for index in range(3)] == [pointers(tensors) for tensors, _ in parts]
    assert len(driver.launched) == 4
    assert len(calls.linears_calls.known) == 1


def test_a_warm_gated_mlp_hands_the_partial_sums_on(driver):
    (gate, up, down), specs = mlp_of()
    for _ in range(2):
        x, first, second = torch.randn(1, 512), torch.zeros(512), torch.zeros(1)
        out = operators.gated_mlp(x, gate, up, down, None, None, None, first, second, *specs, "silu")
        up_launch, down_launch, _ = (launched.arguments for launched in driver.launched[-3:])
        assert [addresses(up_launch, index) for index in (0, 1)] == [pointers(gate), pointers(up)]
        assert (up_launch.x, up_launch.threshold, up_launch.per_channel) == (x.data_ptr(), first.data_ptr(), 1)
        assert addresses(down_launch) == pointers(down)
        assert (down_launch.threshold, down_launch.per_channel) == (second.data_ptr(), 0)
        assert down_launch.in_partials == up_launch.partials != down_launch.partials
        assert down_launch.weights[0].out == out.data_ptr()
    assert len(calls.mlp_calls.known) == 1


def test_workspaces_in_one_allocation_do_not_overlap(driver):
    (gate, up, down), specs = mlp_of()
    operators.gated_mlp(torch.randn(512), gate, up, down, None, None, None, None, None, *specs, "silu")
    (call,) = calls.mlp_calls.known.values()
    up_plan, down_plan = call._up.__self__.plan, call._down.__self__.plan
    assert call._offset >= 4 * up_plan.partial_floats
    assert call._offset % 256 == 0
    assert 4 * call._workspace[0][0] >= call._offset + 4 * down_plan.partial_floats


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_weight_that_moved_is_launched_from_where_it_is(driver, index):
    weight, spec = packed()
    x = torch.randn(512)
    operators.linear(x, weight, None, None, spec)
    keep = weight[index].data
    weight[index].data = keep.clone()
    operators.linear(x, weight, None, None, spec)
    assert addresses(driver.launched[-1].arguments) == pointers(weight)
    assert pointers(weight)[index] != keep.data_ptr()


def test_a_bias_that_moved_is_added_from_where_it_is(driver):
    weight, spec = packed()
    bias = torch.zeros(256)
    operators.linear(torch.randn(512), weight, bias, None, spec)
    keep = bias.data
    bias.data = keep.clone()
    operators.linear(torch.randn(512), weight, bias, None, spec)
    assert driver.launched[-1].arguments.weights[0].bias == bias.data_ptr() != keep.data_ptr()


def test_another_dtype_at_the_same_address_is_another_kernel(driver):
    weight, spec = packed()
    operators.linear(torch.randn(512), weight, None, None, spec)
    weight[1] = weight[1].view(torch.bfloat16)
    operators.linear(torch.randn(512), weight, None, None, spec)
    assert len(calls.linears_calls.known) == 2
    assert driver.functions == 4


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[:-128], "code words"),
        (1, lambda t: t[:-128], "scales"),
        (2, lambda t: t[:-128], "different sizes"),
        (0, lambda t: t.view(torch.float32), "torch.float32, expected torch.int32"),
        (1, lambda t: torch.as_strided(t, t.shape, (0,)), "contiguous"),
    ],
)
def test_a_warm_call_still_refuses_a_weight_that_no_longer_fits_at_the_same_address(driver, index, change, message):
    weight, spec = packed()
    operators.linear(torch.randn(512), weight, None, None, spec)
    weight[index].data = change(weight[index].data)
    with pytest.raises(ZigpassError, match=message):
        operators.linear(torch.randn(512), weight, None, None, spec)
    assert len(driver.launched) == 2


def test_freed_storage_is_not_launched(driver):
    weight, spec = packed()
    operators.linear(torch.randn(512), weight, None, None, spec)
    weight[0].untyped_storage().resize_(0)
    with pytest.raises(ZigpassError, match=r"codes of .* has no memory, its storage was freed"):
        operators.linear(torch.randn(512), weight, None, None, spec)
    assert len(driver.launched) == 2


def test_a_warm_call_refuses_other_inputs(driver):
    weight, spec = packed()
    operators.linear(torch.randn(512), weight, None, torch.zeros(1), spec)
    with pytest.raises(ZigpassError, match="x has 511 features"):
        operators.linear(torch.randn(511), weight, None, torch.zeros(1), spec)
    with pytest.raises(ZigpassError, match=r"x has dtype torch.float64"):
        operators.linear(torch.randn(512).double(), weight, None, torch.zeros(1), spec)
    with pytest.raises(ZigpassError, match="threshold has 2 entries"):
        operators.linear(torch.randn(512), weight, None, torch.zeros(2), spec)
    with pytest.raises(ZigpassError, match=r"threshold is torch.float64"):
        operators.linear(torch.randn(512), weight, None, torch.zeros(1).double(), spec)
    unaligned = torch.frombuffer(bytearray(4 * 512 + 1), dtype=torch.float32, offset=1, count=512)
    with pytest.raises(ZigpassError, match=r"x starts at .*, which is not a multiple of the 4 bytes of torch.float32"):
        operators.linear(unaligned, weight, None, torch.zeros(1), spec)
    assert len(driver.launched) == 2


def test_prepared_calls_keep_no_tensor_alive(driver):
    weight, spec = packed()
    alive = [weakref.ref(tensor) for tensor in weight]
    operators.linear(torch.randn(512), weight, None, None, spec)
    assert len(calls.linears_calls.known) == 1
    del weight
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_the_oldest_calls_go_when_there_are_too_many(driver, monkeypatch):
    monkeypatch.setattr(calls, "MOST_CALLS", 3)
    weights = [packed(seed=seed) for seed in range(5)]
    for weight, spec in weights:
        operators.linear(torch.randn(512), weight, None, None, spec)
    assert len(calls.linears_calls.known) == 3
    known = {key[3][0][0] for key in calls.linears_calls.known}
    assert known == {weight[0].data_ptr() for weight, _ in weights[2:]}


def test_a_stream_has_its_own_call(driver):
    weight, spec = packed()
    for stream in (0, 7, 0, 7):
        driver.stream = stream
        operators.linear(torch.randn(512), weight, None, None, spec)
        assert {launched.stream for launched in driver.launched[-2:]} == {stream}
    assert len(calls.linears_calls.known) == 2


def test_a_thread_has_its_own_calls(driver):
    weight, spec = packed()
    operators.linear(torch.randn(512), weight, None, None, spec)
    known = []
    thread = threading.Thread(target=lambda: known.append(len(calls.linears_calls.known)))
    thread.start()
    thread.join()
    assert known == [0]


def test_operands_that_are_not_contiguous_are_copied(driver):
    weight, spec = packed()
    x, threshold, bias = torch.randn(512, 2)[:, 1], torch.rand(512, 2)[:, 0], torch.randn(256, 2)[:, 0]
    seen = []

    def read(arguments):
        slot = arguments.weights[0]
        for address, like in ((arguments.x, x), (arguments.threshold, threshold), (slot.bias, bias)):
            seen.append(torch.equal(at(address, like.shape), like))

    driver.reads = read
    operators.linear(x, weight, bias, threshold, spec)
    assert seen == [True] * 6


def at(address, shape):
    """The float32 tensor at an address."""
    count = torch.Size(shape).numel()
    return torch.frombuffer(bytearray(ctypes.string_at(address, 4 * count)), dtype=torch.float32).view(shape)


def count_of(kept):
    return torch.tensor([kept], dtype=torch.int32)


def test_a_count_becomes_a_threshold_per_channel(driver):
    weight, spec = packed()
    x = torch.randn(1, 512)
    x[0, 100] = x[0, 101] = x[0, 102] = 9.0
    active = []

    def read(arguments):
        assert arguments.per_channel == 1
        active.append(~(at(arguments.x, (512,)).abs() < at(arguments.threshold, (512,))))
        assert torch.equal(at(arguments.x, (512,)), reference.mask_inactive(x, count_of(2)).flatten())

    driver.reads = read
    operators.linear(x, weight, None, count_of(2), spec)
    assert [mask.nonzero().flatten().tolist() for mask in active] == [[100, 101]] * 2


def test_a_count_for_the_middle_takes_the_whole_middle_first(driver):
    (gate, up, down), specs = mlp_of()
    operators.gated_mlp(torch.randn(1, 512), gate, up, down, None, None, None, count_of(9), count_of(7), *specs, "silu")
    assert [launched.name for launched in driver.launched] == ["zigzag_gemv", "zigzag_combine"] * 2
    first, down_launch = driver.launched[0].arguments, driver.launched[2].arguments
    assert (first.num_weights, down_launch.num_weights) == (2, 1)
    assert addresses(down_launch) == pointers(down)
    assert down_launch.per_channel == 1
    assert not calls.mlp_calls.known


def test_a_count_is_ignored_for_several_rows(driver):
    weight, spec = packed()
    x = torch.randn(2, 512)
    operators.linear(x, weight, None, count_of(2), spec)
    assert {launched.arguments.x for launched in driver.launched} == {x.data_ptr()}


@pytest.mark.parametrize("warm", [False, True])
def test_a_refused_launch_is_reported_with_the_drivers_words(driver, warm):
    weight, spec = packed()
    if warm:
        operators.linear(torch.randn(512), weight, None, None, spec)
    driver.status = Status(701)
    driver.status.name = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    message = r"launching zigzag_gemv of gemv\.cu failed with CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: what the driver says$"
    with pytest.raises(ZigpassError, match=message):
        operators.linear(torch.randn(512), weight, None, None, spec)


def test_a_context_that_an_earlier_kernel_broke_is_reported_as_such(driver):
    weight, spec = packed()
    driver.status = Status(700)
    driver.status.name = "CUDA_ERROR_ILLEGAL_ADDRESS"
    for _ in range(2):
        with pytest.raises(ZigpassError, match=r"An earlier kernel of this process failed.*start the process again"):
            operators.linear(torch.randn(512), weight, None, None, spec)
