"""Fixtures shared by the tests."""

import os

import pytest
import torch

from zigpass.decode_like import DecodeLike

# Test files run in two processes side by side; more threads than cores make both slower.
torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))


def pytest_collection_modifyitems(items):
    """Tests marked `cuda` run where there is a GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


class DecodeRuns(list):
    """Where each `DecodeLike.run` started, in order.

    Attributes:
        interrupt_at: Ctrl-C comes once, in place of the run with this index.
    """

    interrupt_at = None


@pytest.fixture
def decode_runs(monkeypatch):
    """The runs of decode-like windows, watched, and interrupted where a test asks for it."""
    runs, run = DecodeRuns(), DecodeLike.run

    def watched(self, start=None):
        if len(runs) == runs.interrupt_at:
            runs.interrupt_at = None
            raise KeyboardInterrupt
        runs.append(start)
        return run(self, start)

    monkeypatch.setattr(DecodeLike, "run", watched)
    return runs


@pytest.fixture
def no_compile_caches():
    """Neither Dynamo nor Inductor knows a graph of an earlier test, or of an earlier run."""
    torch._dynamo.reset()
    with torch.compiler.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def smollm2_path():
    """The real checkpoint, fetched once into the cache folder.

    Where it cannot be fetched the tests that need it are skipped, except in CI, where that is a failure.
    """
    from zigpass.demo_checkpoint import find_checkpoint
    from zigpass.runtime import ZigpassError

    try:
        return find_checkpoint()
    except ZigpassError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no checkpoint: {error}")
