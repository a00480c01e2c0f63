"""Reading text files to calibrate and evaluate on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from zigpass.runtime import ZigpassError


def read_texts(paths: Sequence[str | os.PathLike[str]], *, encoding: str = "utf-8", unwrap: bool = False) -> list[str]:
    """The texts of some files.

    Args:
        encoding: of all files; a byte order mark of UTF-8 is dropped.
        unwrap: join the lines of each paragraph, for books whose lines are broken at a fixed width.

    Raises:
        ZigpassError: a file is missing, empty, or not text in this encoding.
    """
    return [_read_text(Path(path), encoding, unwrap) for path in paths]


def _read_text(path: Path, encoding: str, unwrap: bool) -> str:
    if not path.is_file():
        raise ZigpassError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding)
    except UnicodeDecodeError as error:
        raise ZigpassError(
            f"{path}: not {encoding} text (byte 0x{data[error.start]:02x} at {error.start}); name its encoding, such as"
            " latin-1 or utf-16, or convert it"
        ) from error
    except LookupError as error:
        raise ZigpassError(f"encoding {encoding!r} is not one that Python knows") from error
    if "\0" in text:
        raise ZigpassError(f"{path}: holds NUL characters, so it is not plain {encoding} text")
    if not text.strip():
        raise ZigpassError(f"{path}: empty")
    return _unwrapped(text) if unwrap else text


def _unwrapped(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", paragraph).strip() for paragraph in paragraphs)
