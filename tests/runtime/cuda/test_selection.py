"""The threshold that a count turns into, on the CPU: it is made of torch's operators only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zigpass.runtime import reference
from zigpass.runtime.cuda.selection import is_count, keep_largest


def count_of(kept):
    return torch.tensor([kept], dtype=torch.int32)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_same_entries_as_the_reference_whatever_the_ties(data):
    entry = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-42, 2.0, -2.0, 3e30, torch.inf, -torch.inf, torch.nan])
    x = torch.tensor([data.draw(st.lists(entry, min_size=1, max_size=60))])
    count = count_of(data.draw(st.integers(-1, x.numel() + 2)))
    kept, threshold = keep_largest(x, count)
    inactive = reference.inactive(x, count)
    assert torch.equal(kept.abs() < threshold, inactive)
    assert torch.equal(kept.nan_to_num(7.0), reference.mask_inactive(x, count).nan_to_num(7.0))
    assert (threshold.shape, threshold.dtype) == (x.shape[1:], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_x_keeps_its_shape_and_dtype(dtype):
    kept, _ = keep_largest(torch.randn(1, 1, 33, dtype=dtype), count_of(4))
    assert (kept.shape, kept.dtype, int(kept.count_nonzero())) == ((1, 1, 33), dtype, 4)


def test_a_count_is_told_by_its_dtype():
    assert is_count(count_of(3))
    assert not is_count(torch.zeros(1))
    assert not is_count(None)
