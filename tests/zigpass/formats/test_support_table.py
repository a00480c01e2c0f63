from zigpass.formats.ggml_blocks import READERS
from zigpass.formats.registry import RECOGNIZERS
from zigpass.formats.support_table import support_table


def test_every_representation_has_a_row_with_all_cells():
    header, rule, *rows = support_table().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in (header, *rows)]
    assert {len(row) for row in cells} == {4}
    assert all(all(row) for row in cells)
    assert set(rule) <= set("|- ")
    names = [row[0] for row in cells[1:]]
    assert len(names) == len(set(names)) == len(RECOGNIZERS) + len(READERS) + 1
    assert all(recognizer.name in names for recognizer in RECOGNIZERS)
    assert "GGUF Q4_K (`load_gguf`)" in names
