"""The support table, from a slice of its cells; `python -m zigpass.tools.support_table` goes through all of them."""

import pytest

from zigpass.runtime import ZigpassError
from zigpass.tools.representations import REPRESENTATIONS
from zigpass.tools.support_cells import COLUMNS, Cell, measure
from zigpass.tools.support_table import LONG_HEADER, long_page, short_table, support_table

EXPERTS = "4 experts in one parameter, of which the router picks some for each token: they run in float"
HEAD = "the output head: quantize_ leaves it in float unless filter_fn asks for it"

COMPLETE = {
    ("Phi3", "torchao Intx int4"): ("2 gated_mlp, 4 linear", 8),
    ("Falcon", "GPTQ act-order"): ("2 mlp, 4 linear", 8),
    ("Mixtral", "GPTQ v1"): ("2 qkv, 2 linear", 8),
    ("OPT", "AWQ"): ("2 mlp, 2 qkv, 2 linear", 12),
    ("Gemma3", "torchao Int4 plain"): ("2 gated_mlp, 2 qkv, 2 linear", 14),
    ("Qwen3", "PT2E groups"): ("2 gated_mlp, 2 qkv, 2 linear", 14),
    ("Qwen2", "GGUF Q6_K"): ("1 gated_mlp, 1 qkv, 1 linear, 1 dense_linear", 8),
}
"""Slices of the table where all that is quantized is matched: sparse ops and linears."""
NOTHING = {
    ("Llama", "torchao Int4 tile-packed"): (14, "its codes lie in the order of a CUDA kernel and the tensor is on cpu"),
    ("GPT2", "torchao Intx int4"): (0, "the library takes nn.Linear, and this model has transformers' Conv1D instead"),
    ("GPT2", "PT2E groups"): (0, "PT2E quantizes aten.linear, and the graph of this model has none"),
    ("Phi3", "GGUF Q4_0"): (0, "GGUF files are read of the architectures llama, qwen2, qwen3, gemma3"),
}


def measured(pair):
    if any(name in pair[1] for name in ("torchao", "PT2E")):
        pytest.importorskip("torchao", reason="torchao is not installed")
    return measure(*pair)


@pytest.mark.parametrize("pair", COMPLETE, ids=" ".join)
def test_all_expected_linears_match_and_agree_to_fp32_rounding(pair):
    cell = measured(pair)
    assert (cell.matched, cell.expected) == COMPLETE[pair]
    assert cell.num_matched == cell.expected
    assert 0 <= cell.difference < 2e-6
    left = {reason: [name.rpartition(".")[2] for name in names] for reason, names in cell.reasons.items()}
    if pair[0] == "Mixtral":
        assert left.pop(EXPERTS) == ["gate_up_proj", "down_proj"] * 2
        assert left.pop("a weight that its module uses by itself, not through a linear that could be replaced") == [
            "gate",
            "gate",
        ]
    assert all(names == ["lm_head"] for names in left.values())


@pytest.mark.parametrize("pair", NOTHING, ids=" ".join)
def test_what_is_not_packed_says_why(pair):
    cell = measured(pair)
    expected, reason = NOTHING[pair]
    assert (cell.num_matched, cell.expected, cell.difference) == (0, expected, None)
    ((sentence, names),) = cell.reasons.items()
    assert reason in sentence
    assert len(names) == max(expected, 1)


def test_a_linear_that_nothing_is_said_about_is_an_error(monkeypatch):
    """What the table promises: matched, or named by `explain` with the reason."""
    monkeypatch.setattr("zigpass.explain_rows.HEAD", "")
    with pytest.raises(ZigpassError, match="Llama, GPTQ v2: explain says nothing about lm_head"):
        measure("Llama", "GPTQ v2")


def cells():
    return [
        Cell("Llama", "AWQ", "2 mlp", 14, 14, 3e-7, {HEAD: ["lm_head"]}),
        Cell("Llama", "GGUF Q4_0", "1 mlp", 7, 7, 2e-7, {}),
        Cell("Llama", "GGUF Q4_1", "1 mlp", 7, 7, 5e-7, {}),
        Cell("GPT2", "AWQ", "1 mlp", 6, 8, 1e-7, {"it is odd": ["x.y", "x.z"]}),
        Cell.nothing("GPT2", "GGUF Q4_0", 0, {"not read": ["GPT2"]}),
    ]


def test_short_table_has_a_line_per_model_and_numbers_the_reasons():
    assert short_table(cells()).splitlines() == [
        "|  | AWQ | GGUF |",
        "| --- | --- | --- |",
        "| Llama | 14/14 | 7/7 |",
        "| GPT2 | 6/8 (1) | - (2) |",
        "| largest logit difference | 3e-07 | 5e-07 |",
        "",
        "1. it is odd",
        "2. not read",
    ]


def test_long_page_has_a_line_per_cell():
    lines = long_page(cells()).splitlines()
    header = lines.index("| " + " | ".join(LONG_HEADER) + " |")
    assert len(lines) == header + 2 + len(cells())
    assert lines[header + 5] == "| GPT2 | AWQ | 1 mlp | 6 of 8 | 1e-07 | `x.y` and 1 more: it is odd |"
    assert all(f"| {name} | " in "\n".join(lines[:header]) for name in REPRESENTATIONS)


def test_representations_without_their_library_are_skipped_and_named(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    support_table(["Llama"], ["HQQ"])
    assert "HQQ: skipped, hqq is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((["Lama"],), "unknown models Lama; known are Llama, Mistral"), ((None, ["GPTQ v3"]), "known are `quantize_`")],
)
def test_an_unknown_name_is_an_error(arguments, message):
    with pytest.raises(ZigpassError, match=message):
        support_table(*arguments)


def test_every_column_is_one_that_can_be_measured():
    assert len(set(COLUMNS)) == len(COLUMNS) == 26
