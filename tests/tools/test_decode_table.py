import pytest

from zigpass.runtime import ZigpassError
from zigpass.tools.decode_table import layer_lines, table_lines


def result(*rows, of_layers=None):
    return {"shapes": {"llama-3-8b": {"of_layers": of_layers}}, "rows": list(rows)}


def row(variant, microseconds):
    layer = [{"name": "fmha", "gap": 0.0, "duration": 5.5}, {"name": "zigzag_gemv", "gap": -1.25, "duration": 7.0}]
    parts = {"attention": 100, "linears": 2000, "head": 90, "other": 300, "gaps": 40}
    return {
        "model": "llama-3-8b",
        "layers": 32,
        "variant": variant,
        "microseconds": microseconds,
        "parts": {**parts, "kernels": 425, "layer": layer},
    }


def test_rows_are_compared_with_tinygemm():
    _, _, peer, ours = table_lines(result(row("tinygemm", 4000.0), row("zigpass 50%", 2000.0)))
    assert peer == ("| llama-3-8b (32 layers) | tinygemm | 4,000 | 250 | 1.00x | 2,000 | 100 | 90 | 300 | 40 | 425 |")
    assert ours.startswith("| llama-3-8b (32 layers) | zigpass 50% | 2,000 | 500 | 2.00x |")


def test_without_tinygemm_there_is_no_ratio():
    assert "| 2,000 | 500 |  | 2,000 |" in table_lines(result(row("zigpass 50%", 2000.0)))[2]


def test_a_part_of_a_model_is_said_to_be_one():
    assert "| llama-3-8b (32 of 80 layers) |" in table_lines(result(row("tinygemm", 1.0), of_layers=80))[2]


def test_launches_come_in_order():
    rows = [row("tinygemm", 1.0), row("zigpass 50%", 2.0)]
    assert layer_lines(rows, "llama-3-8b:zigpass 50%") == ["    0.00     5.50  fmha", "   -1.25     7.00  zigzag_gemv"]
    with pytest.raises(ZigpassError, match="no row 'qwen:x'; the file has llama-3-8b:tinygemm, llama-3-8b:zigpass 50%"):
        layer_lines(rows, "qwen:x")
