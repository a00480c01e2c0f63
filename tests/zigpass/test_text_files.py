import pytest

from zigpass.runtime import ZigpassError
from zigpass.text_files import read_texts


def test_texts_are_read_and_unwrapped(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffOne line\r\nand the next.\r\n\r\n  A second\nparagraph.\n".encode())
    assert read_texts([path], unwrap=True) == ["One line and the next.\n\nA second paragraph."]
    assert read_texts([path]) == ["One line\r\nand the next.\r\n\r\n  A second\nparagraph.\n"]


def test_another_encoding_has_to_be_named(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("née".encode("latin-1"))
    with pytest.raises(ZigpassError, match=r"latin.txt: not utf-8 text \(byte 0xe9 at 1\); name its encoding"):
        read_texts([path])
    assert read_texts([path], encoding="latin-1") == ["née"]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b" \n", "utf-8", "text.txt: empty"),
        (b"a\0b", "utf-8", "text.txt: holds NUL characters"),
        (b"a", "klingon", "encoding 'klingon' is not one that Python knows"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, encoding, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ZigpassError, match=message):
        read_texts([path], encoding=encoding)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ZigpassError, match=r"none.txt: no such file"):
        read_texts([tmp_path / "none.txt"])
