"""Models in the local cache of the Hugging Face hub, by id."""

from __future__ import annotations

from pathlib import Path

from zigpass.runtime import ZigpassError


def hub_folder(word: str) -> Path:
    """The folder of a model that the hub's own client has fetched before.

    Args:
        word: the id, "owner/name".

    Raises:
        ZigpassError: it is not in the cache; nothing is downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ZigpassError(f"{word}: no such file or folder, and no huggingface_hub to look it up with") from error
    try:
        return Path(snapshot_download(word, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ZigpassError(
            f"{word}: no such file or folder, and no model of this id in the local hub cache;"
            f" fetch it first (hf download {word})"
        ) from error
