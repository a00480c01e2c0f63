"""The table of representations for the README, from the recognizers themselves."""

from __future__ import annotations

from .ggml_blocks import READERS
from .registry import RECOGNIZERS

HEADER = ("representation", "what is kept", "compared with", "refused, with the reason")


def support_table() -> str:
    """Markdown: a row per representation that zigpass knows."""
    rows = [(item.name, item.kept, item.exactness, item.refused) for item in RECOGNIZERS]
    rows += [(f"GGUF {name} (`load_gguf`)", *reader.table_cells) for name, reader in READERS.items()]
    rows.append(("plain nn.Linear", "nothing: never quantized without being asked", "-", "call `zigpass.quantize_`"))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, ("---",) * len(HEADER), *rows)) + "\n"
