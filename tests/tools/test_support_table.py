"""The support table, from a few of its cells; `tests/zigpass/test_models_shapes.py` goes through all models."""

import warnings

import pytest

from zigpass.runtime import ZigpassError
from zigpass.tools.support_table import HEADER, Cell, measure, support_table, table


def test_lossless_representations_agree_to_fp32_rounding():
    pytest.importorskip("torchao")
    cell = measure("Phi3", "torchao int4")
    assert (cell.matched, cell.num_matched, cell.num_packed) == ("2 gated_mlp, 4 linear", 10, 10)
    assert 0 <= cell.difference < 1e-5
    assert list(cell.reasons.values()) == [(1, "lm_head")]


def test_what_did_not_match_is_named():
    cell = measure("Mixtral", "`quantize_`, 4 bits")
    assert cell.difference < 1e-5
    assert {name.rpartition(".")[2]: count for count, name in cell.reasons.values()} == {
        "gate_up_proj": 4,
        "lm_head": 1,
        "gate": 2,
    }


def test_nothing_packed_is_no_agreement():
    pytest.importorskip("torchao")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the backend says that it found nothing
        cell = measure("Falcon", "torchao int4")
    assert (cell.num_packed, cell.difference) == (0, None)
    assert sum(count for count, _ in cell.reasons.values()) == 9


def test_markdown():
    cell = Cell("Llama", "a", "2 mlp", 4, 4, 3e-7, {"the reason": (2, "x.y"), "another": (1, "z")})
    header, rule, row = table([cell]).splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == len(HEADER) + 1
    assert row == "| Llama | a | 2 mlp | 4 of 4 | 3e-07 | `x.y` and 1 more: the reason; `z`: another |"


def test_an_unknown_model_is_an_error():
    with pytest.raises(ZigpassError, match="unknown models Lama; known are Llama, Mistral"):
        support_table(["Lama"])
