"""Command-line options that `zigpass calibrate` and `zigpass evaluate` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from zigpass.config import ZigzagConfig
from zigpass.runtime.layout import ScaleAxis
from zigpass.text_files import read_texts
from zigpass.tools.demo import topics

Model = Annotated[
    Path | None,
    typer.Argument(
        help="GGUF file, Hugging Face folder or cached hub id of a causal language model; by default the demo's."
    ),
]
CalibrationText = Annotated[
    list[Path] | None,
    typer.Option("--calibration", help="Text file to calibrate on; several give the same number of windows each."),
]
Encoding = Annotated[str, typer.Option(help="Encoding of the text files.")]
Unwrap = Annotated[bool, typer.Option(help="Join the lines of each paragraph of the text files.")]
Recalibrate = Annotated[
    bool, typer.Option(help="Place thresholds on activations after sparse sites, as decoding has them.")
]
Bits = Annotated[int | None, typer.Option(help="Quantize a float model, or requantize a GGUF file: 2, 4 or 8 bits.")]
GroupSize = Annotated[int, typer.Option(help="Inputs that share a scale, with --bits.")]
Axis = Annotated[str, typer.Option("--scale-axis", help="in or out, with --bits.")]

Half = Literal[0, 1]


def quantization(bits: int | None, group_size: int, scale_axis: str) -> ZigzagConfig | None:
    """The config that the options name; None without --bits."""
    if bits is None:
        return None
    return ZigzagConfig(bits=bits, group_size=group_size, scale_axis=cast(ScaleAxis, scale_axis))


def texts_or_topics(paths: list[Path] | None, half: Half, encoding: str, unwrap: bool) -> tuple[str, list[str]]:
    """What to call the text, and the text; without files, a half of Python's documentation topics."""
    if not paths:
        return f"{('first', 'second')[half]} half of Python's documentation topics", [topics()[half]]
    return ", ".join(path.name for path in paths), read_texts(paths, encoding=encoding, unwrap=unwrap)


def model_or_demo(path: Path | None, announce: Any) -> Path:
    """The path given, or that of the demo's checkpoint."""
    if path is not None:
        return path
    from zigpass.demo_checkpoint import find_checkpoint

    return find_checkpoint(announce=announce)
