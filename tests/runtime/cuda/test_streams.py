"""Streams, CUDA graphs, threads and memory reuse of the CUDA operators, on a GPU."""

import threading

import pytest
import torch

from .comparisons import assert_close
from .operands import DEVICE, check_linear, mlp_operands, packed, random_x, threshold_for

pytestmark = pytest.mark.cuda


def test_a_chain_of_launches_reuses_memory_safely():
    """Launches overlap and the allocator hands the same workspace around; the results stay the same bits."""
    tensors, specs = mlp_operands(1024, 4096)
    x = random_x(1024, dtype=torch.bfloat16)
    thresholds = (threshold_for(x, 0.5), torch.full((1,), 1e-3, device=DEVICE))

    def step(value):
        for _ in range(20):
            value = torch.ops.zigpass.gated_mlp(value, *tensors, *thresholds, *specs, "silu")
            value = value / value.float().norm().clamp_min(1e-3).to(value.dtype) * 30
        return value

    first = step(x)
    for _ in range(20):
        assert torch.equal(step(x), first)


def test_graph_capture_without_a_warm_up_and_replay_with_new_data():
    tensors, specs = mlp_operands(512, 1280)
    weight, spec = packed(512, 512)
    x, threshold = random_x(1, 512, dtype=torch.float16), torch.zeros(1, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.zigpass.linear(x, weight, None, threshold, spec)
        z = torch.ops.zigpass.gated_mlp(y, *tensors, threshold, threshold, *specs, "silu")
    for seed in range(4):
        x.copy_(random_x(1, 512, seed=seed))
        threshold.fill_(0.3 * seed)
        for _ in range(3):
            graph.replay()
            expected = torch.ops.zigpass.linear(x, weight, None, threshold, spec)
            assert torch.equal(y, expected)
            assert torch.equal(z, torch.ops.zigpass.gated_mlp(y, *tensors, threshold, threshold, *specs, "silu"))


def test_graphs_and_streams_that_run_at_the_same_time_do_not_disturb_each_other():
    weight, spec = packed(4096, 4096, band=1024)
    inputs = [random_x(4096, seed=seed) for seed in range(4)]
    expected = [torch.ops.zigpass.linear(x, weight, None, None, spec) for x in inputs]
    graphs, results = [], []
    for x in inputs[:2]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results.append(torch.ops.zigpass.linear(x, weight, None, None, spec))
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in inputs]
    for _ in range(50):
        torch.cuda.synchronize()
        for graph, stream in zip(graphs, streams, strict=False):
            with torch.cuda.stream(stream):
                graph.replay()
        eager = []
        for x, stream in zip(inputs[2:], streams[2:], strict=True):
            with torch.cuda.stream(stream):
                eager.append(torch.ops.zigpass.linear(x, weight, None, None, spec))
        torch.cuda.synchronize()
        for actual, wanted in zip([*results, *eager], expected, strict=True):
            assert torch.equal(actual, wanted)


def test_compiled_with_cuda_graphs():
    tensors, specs = mlp_operands(512, 1280)
    threshold = torch.full((1,), 0.5, device=DEVICE)

    def step(x):
        return torch.ops.zigpass.gated_mlp(x * 2, *tensors, threshold, threshold, *specs, "silu") + x

    compiled = torch.compile(step, mode="reduce-overhead")
    for seed in range(5):
        x = random_x(1, 512, dtype=torch.bfloat16, seed=seed)
        assert_close(compiled(x).clone(), step(x))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_several_gpus_in_one_process():
    """Each GPU has its own kernels, context and workspace; the current device does not matter."""
    tensors, specs = mlp_operands(512, 1280)
    weight, spec = packed(512, 512)
    x, threshold = random_x(1, 512), torch.full((1,), 0.5, device=DEVICE)

    def run(device):
        def there(value):
            if isinstance(value, (list, tuple)):
                return [there(item) for item in value]
            return value if value is None else value.to(device)

        y = torch.ops.zigpass.linear(there(x), there(weight), None, there(threshold), spec)
        limits = (there(threshold), there(threshold))
        return torch.ops.zigpass.gated_mlp(y, *there(tensors), *limits, *specs, "silu")

    expected = run("cuda:0")
    for _ in range(3):
        for index in range(torch.cuda.device_count()):
            result = run(f"cuda:{index}")
            assert result.device.index == index
            assert torch.equal(result.cpu(), expected.cpu())
    with torch.cuda.device(1):
        assert torch.equal(run("cuda:0").cpu(), expected.cpu())
    results = {}
    threads = [
        threading.Thread(target=lambda index=index: results.update({index: run(f"cuda:{index % 2}").cpu()}))
        for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected.cpu()) for result in results.values())
    assert len(results) == 6


def test_non_contiguous_x_and_threads():
    weight, spec = packed(256, 512)
    x = random_x(512, 3)[:, 1]
    check_linear(x, weight, spec)
    expected, results = torch.ops.zigpass.linear(x, weight, None, None, spec), []
    threads = [
        threading.Thread(target=lambda: results.append(torch.ops.zigpass.linear(x, weight, None, None, spec)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert len(results) == 8
    assert all(torch.equal(result, expected) for result in results)
