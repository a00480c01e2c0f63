"""Where a model runs."""

import pytest
import torch
from torch import nn

from zigpass.runtime import ZigpassError
from zigpass.tools.device_option import find_device, move_to


def test_the_gpu_is_the_default_where_there_is_one():
    assert find_device("").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x"])
def test_other_devices_are_refused(name):
    with pytest.raises(ZigpassError, match=f"--device {name}: neither cpu nor cuda"):
        find_device(name)


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ZigpassError, match=r"--device cuda:99: torch .* sees \d+ GPUs; --device cpu"):
        find_device("cuda:99")


def test_a_model_that_does_not_fit_says_the_way_out():
    class Large(nn.Module):
        def to(self, *args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ZigpassError, match="does not fit on cuda; --device cpu"):
        move_to(Large(), torch.device("cuda"))
