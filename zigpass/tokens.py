"""Texts to windows of tokens."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError

Texts = str | Sequence[str] | Tensor
"""A text, several texts, or token ids that are already there."""


def encode(texts: Texts, tokenizer: Any | None, model: nn.Module) -> Tensor:
    """Token ids int64 [T].

    Args:
        texts: what to encode; a tensor of ids is taken as it is.
        tokenizer: a Hugging Face tokenizer; None looks beside the model's own checkpoint, without downloading.

    Raises:
        ZigpassError: no text, no tokenizer, or ids outside the model's vocabulary.
    """
    if isinstance(texts, Tensor):
        ids = texts.reshape(-1).to(torch.int64)
    else:
        text = join_texts(texts)
        tokenizer = tokenizer or _tokenizer_of(model)
        ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids.reshape(-1)
    if not ids.numel():
        raise ZigpassError("the text has no tokens; pass some plain text")
    vocabulary = vocabulary_size(model)
    if vocabulary is not None and int(ids.max()) >= vocabulary:
        raise ZigpassError(
            f"the tokenizer gives token {int(ids.max())}, the model has {vocabulary}; pass the tokenizer of this model"
        )
    return ids


def join_texts(texts: str | Sequence[str]) -> str:
    """One text out of one or several.

    Raises:
        ZigpassError: nothing in it but white space.
    """
    text = texts if isinstance(texts, str) else "\n\n".join(texts)
    if not text.strip():
        raise ZigpassError("the text is empty; pass some plain text (a few thousand words are enough)")
    return text


def text_windows(texts: Texts, tokenizer: Any | None, model: nn.Module, length: int, count: int) -> Tensor:
    """Up to `count` windows of `length` tokens, spread over a text, each beginning as a text of this model does.

    Of several texts, each gives the same number of windows, so that a long one does not drown the others. Texts too
    short for that, such as the documents of a data set, are read as one, with a blank line between.

    Args:
        texts, tokenizer: as for `encode`.

    Returns:
        int64 [windows, length], text by text.

    Raises:
        ZigpassError: as `encode` and `spread_windows` do.
    """
    if isinstance(texts, Tensor):
        return _windows_of(encode(texts, None, model), None, model, length, count)
    whole = join_texts(texts)
    tokenizer = tokenizer or _tokenizer_of(model)
    parts = [] if isinstance(texts, str) else [text for text in texts if text.strip()]
    if 1 < len(parts) <= count:
        ends = [count * i // len(parts) for i in range(len(parts) + 1)]
        shares = [end - start for start, end in itertools.pairwise(ends)]
        encoded = [encode(text, tokenizer, model) for text in parts]
        if all(ids.numel() >= share * length for ids, share in zip(encoded, shares, strict=True)):
            windows = zip(encoded, shares, strict=True)
            return torch.cat([_windows_of(ids, tokenizer, model, length, share) for ids, share in windows])
    return _windows_of(encode(whole, tokenizer, model), tokenizer, model, length, count)


def _windows_of(ids: Tensor, tokenizer: Any | None, model: nn.Module, length: int, count: int) -> Tensor:
    return spread_windows(ids, length, count, first_tokens(ids, model, tokenizer))


def spread_windows(ids: Tensor, length: int, count: int, first: Tensor | None = None) -> Tensor:
    """Up to `count` windows of `length` tokens, evenly spread over the text, [windows, length].

    Args:
        first: `first_tokens` of the text; every window begins with them.

    Raises:
        ZigpassError: the text is shorter than one window.
    """
    if first is not None and len(first):
        rest = spread_windows(ids[len(first) :], length - len(first), count)
        return torch.cat([first.expand(len(rest), -1), rest], dim=1)
    available = ids.numel() // length
    if not available:
        raise ZigpassError(f"the text has {ids.numel()} tokens, one window needs {length}; pass a longer text")
    count = min(count, available)
    starts = torch.linspace(0, ids.numel() - length, count).long()
    return torch.stack([ids[start : start + length] for start in starts])


def first_tokens(ids: Tensor, model: nn.Module, tokenizer: Any | None = None) -> Tensor:
    """The special tokens that a tokenizer has put before a text: one for most models, two for some, none for others.

    A window from the middle of a text needs them too: without its one the dense perplexity of Gemma-3-270m is 39 where
    it is 25 with it, because whatever comes first takes its part in attention.

    Args:
        ids: int64 [T], the whole text.
        tokenizer: without one, only the model's own `bos_token_id` counts.
    """
    special = set(getattr(tokenizer, "all_special_ids", []))
    begin = getattr(getattr(model, "config", None), "bos_token_id", None)
    if isinstance(begin, int):  # some configs hold a list, or nothing
        special.add(begin)
    count = 0
    while count < len(ids) and int(ids[count]) in special:
        special.remove(int(ids[count]))  # what comes again is of the text
        count += 1
    return ids[:count]


def fingerprint_of(ids: Tensor) -> str:
    """A hash of the tokens, to say which text a result came from."""
    return hashlib.blake2b(ids.numpy().tobytes(), digest_size=16).hexdigest()


def _tokenizer_of(model: nn.Module) -> Any:
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not source:
        raise ZigpassError(
            "pass tokenizer=, or texts as a tensor of token ids: the model does not say where it is from"
        )
    if source.endswith(".gguf"):
        from .gguf_tokenizer import load_gguf_tokenizer

        return load_gguf_tokenizer(source)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except OSError as error:
        raise ZigpassError(f"found no tokenizer of {source!r} on this machine; pass tokenizer=") from error


def vocabulary_size(model: nn.Module) -> int | None:
    """Entries of the input embeddings; None where the model does not show them."""
    get_embeddings = getattr(model, "get_input_embeddings", None)
    embeddings = get_embeddings() if callable(get_embeddings) else None
    return getattr(embeddings, "num_embeddings", None)
