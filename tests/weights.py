"""Random quantized weights for tests."""

import torch

from zigpass.runtime import ColumnScales, GroupScales, QuantizedWeight


def random_weight(n, k, bits, scale_axis, *, group_size=32, zero_kind="sub_int", dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)

    codes = integers(1 << bits, n, k)
    if scale_axis == "in":
        shape = (n, -(-k // group_size))
        scale = torch.rand(shape, generator=generator).to(dtype)
        zero = (
            integers(1 << bits, *shape) if zero_kind == "sub_int" else torch.randn(shape, generator=generator).to(dtype)
        )
        return QuantizedWeight(codes, bits, GroupScales(scale, zero, zero_kind, group_size))
    superblocks, blocks = -(-n // 256), -(-n // 32)
    halves = (torch.rand(superblocks, k, generator=generator).half() for _ in range(2))
    return QuantizedWeight(codes, bits, ColumnScales(*halves, integers(64, blocks, k), integers(64, blocks, k)))


def assert_same(actual: QuantizedWeight, expected: QuantizedWeight) -> None:
    assert torch.equal(actual.codes, expected.codes)
    assert actual.bits == expected.bits
    assert type(actual.scales) is type(expected.scales)
    for name, value in vars(expected.scales).items():
        found = getattr(actual.scales, name)
        if isinstance(value, torch.Tensor):
            assert found.dtype == value.dtype, name
            assert torch.equal(found, value), name
        else:
            assert found == value, name
