"""The tokenizer of a GGUF file, and whether Transformers reads it as it was meant.

Transformers 5.17 takes the tokenizer of Gemma-3 files apart: no token before a text, and "hello" in two pieces. Nothing
fails then, but the model's perplexity is 185 where it is 25.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from zigpass.runtime import ZigpassError

from .formats.gguf_file import GgufFile

SAMPLED_TOKENS = 4096
"""A vocabulary has up to 262,144; a quarter or more of them are such words."""
SAMPLED_WORDS = 64
WHOLE_SHARE = 0.5
"""Of words that are one token of the vocabulary, each is one token of a text: all 2,000 sampled ones with Gemma-3 and
SmolLM2 files read well, 0.1 % with one read badly."""
WORD = re.compile("[▁Ġ]([A-Za-z]{5,})")
"""A word after a blank, as SentencePiece and byte-level vocabularies spell it."""


def load_gguf_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer that the GGUF file describes.

    It begins texts with a token where the file says so, also where Transformers does not read that.

    Raises:
        ZigpassError: the file is missing, foreign or cut short, or this Transformers takes its words apart.
    """
    from transformers import AutoTokenizer

    file = GgufFile(Path(path))
    tokenizer = AutoTokenizer.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    if file.metadata("tokenizer.ggml.add_bos_token") and not getattr(tokenizer, "add_bos_token", True):
        tokenizer.add_bos_token = True
    _check_words(tokenizer, file.path)
    return tokenizer


def _check_words(tokenizer: Any, path: Path) -> None:
    import transformers

    ids = range(0, len(tokenizer), max(1, len(tokenizer) // SAMPLED_TOKENS))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    words = [match[1] for token in tokens if (match := WORD.fullmatch(token))]
    words = words[:: max(1, len(words) // SAMPLED_WORDS)]
    pieces = {word: tokenizer.tokenize(f" {word}") for word in words}
    split = [word for word in words if len(pieces[word]) > 1]
    if len(split) > (1 - WHOLE_SHARE) * len(words):
        raise ZigpassError(
            f"{path}: transformers {transformers.__version__} reads the tokenizer of this file wrongly: {len(split)} of"
            f" {len(words)} words of its vocabulary come apart, such as {split[0]!r} as {pieces[split[0]]}; use another"
            " version of transformers (5.24 reads Gemma-3 files), or pass the tokenizer of the original model"
        )
