"""What `zigpass bench gemv|mlp` makes of its measurements."""

import pytest

from zigpass.runtime import ZigpassError
from zigpass.tools import bench_gemv as tool


@pytest.mark.parametrize(
    ("limit", "expected"), [(11.0, 0.0), (10.0, 0.0), (9.0, 0.125), (8.0, 0.25), (5.0, 0.5), (4.9, None)]
)
def test_break_even(limit, expected):
    assert tool.break_even([(0.0, 10.0), (0.25, 8.0), (0.5, 5.0)], limit) == expected


@pytest.mark.parametrize(("gemlite_us", "ratio", "shown"), [(9.0, 1.5, "1.50x gemlite"), (None, None, "- gemlite")])
def test_ratios_and_the_line_that_is_printed(gemlite_us, ratio, shown):
    head = {"kind": "gemv", "name": "8x8", "axis": "in", "band": 1024, "tinygemm_us": 12.0}
    head |= {"cublas_bf16_us": 30.0, "gemlite_us": gemlite_us, "launched_sparse": [True]}
    rows = [
        head | {"sparsity": sparsity, "us": us, "bytes": bytes_read}
        for sparsity, us, bytes_read in ((None, 10.0, 20e6), (0.0, 11.0, 20e6), (0.5, 6.0, 12e6))
    ]
    dense, none, half = tool.add_ratios(rows, {0.0: 4000.0, 0.5: 2500.0})
    assert half["ratio_tinygemm"] == 2
    assert half["ratio_cublas_bf16"] == 5
    assert half["ratio_gemlite"] == ratio
    assert shown in tool.describe(half)
    assert "break-even 10% with dense, 0% with tinygemm" in tool.describe(half)
    assert half["ratio_dense"] == pytest.approx(10 / 6)
    assert half["active_gb_per_s"] == 2000
    assert half["percent_of_gather"] == 80
    assert dense["percent_of_gather"] == 50
    assert none["break_even_with_dense"] == pytest.approx(0.1)
    assert none["break_even_with_tinygemm"] == 0
    assert "2.00x tinygemm" in tool.describe(half)
    assert "dense" in tool.describe(dense)
    assert "launched dense" not in tool.describe(half) + tool.describe(dense | {"launched_sparse": [False]})
    assert tool.describe(half | {"launched_sparse": [True, False]}).endswith("table says that sparsity never pays)")


def test_bad_input():
    with pytest.raises(ZigpassError, match=r"unknown MLP \['9B'\]"):
        tool.run_mlp(["9B"], ["in"], [1024], None)
    with pytest.raises(ZigpassError, match="are no matrices"):
        tool.run_gemv(["8-16-8"], ["in"], [1024], None)
    with pytest.raises(ZigpassError, match="neither"):
        tool.run_gemv([], ["sideways"], [1024], None)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(tool.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ZigpassError, match="torch sees none"):
        tool.run_mlp([], ["in"], [1024], None)


def test_the_hash_names_the_kernels():
    assert len(tool.kernel_sources_sha256()) == 64
