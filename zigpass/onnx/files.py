"""Writing a model and what goes with it: all of it under the final names, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from zigpass.runtime import ZigpassError

EXTERNAL_ABOVE: Final = 64 << 20
"""Bytes of tensors above which they go to a file of their own; protobuf ends at 2 GiB."""
_LEAST_EXTERNAL: Final = 1024
"""Smaller tensors stay in the model, where shape inference can read them."""


def check_target(path: Path, num_bytes: int) -> None:
    """Make the folder of a file that will be written, and see that it takes files of that size.

    Raises:
        ZigpassError: it cannot be written, or the disk has less room.
    """
    if path.suffix != ".onnx":
        raise ZigpassError(f"{path}: the name of the file must end with .onnx")
    if path.is_dir():
        raise ZigpassError(f"{path} is a folder; name a file in it, such as {path / 'model.onnx'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise ZigpassError(f"{path}: cannot be written ({error})") from error
    if free < num_bytes:
        raise ZigpassError(f"{path}: needs about {num_bytes / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB left")


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder beside a file to write it and its companions in; on success they all move beside it, the file last.

    Raises:
        ZigpassError: something could not be written; nothing has changed under the final names then.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            yield Path(folder)
            written = sorted(Path(folder).iterdir(), key=lambda each: each.name == path.name)
            for each in written:
                os.replace(each, path.parent / each.name)
    except OSError as error:
        raise ZigpassError(f"{path}: cannot be written ({error}); nothing was left there") from error


def save_model(model: Any, path: Path, on_tensor: Callable[[], None] = lambda: None) -> None:
    """Write an `onnx_ir.Model`, with large tensors in `<path>.data` if there is much of them.

    Args:
        on_tensor: called before each tensor of that file is written.

    Raises:
        OSError: as the system says.
    """
    import onnx_ir as ir

    if tensor_bytes(model) <= EXTERNAL_ABOVE:
        ir.save(model, path)
        return
    ir.save(
        model,
        path,
        external_data=f"{path.name}.data",
        size_threshold_bytes=_LEAST_EXTERNAL,
        callback=lambda tensor, info: on_tensor(),
    )


def tensor_bytes(model: Any) -> int:
    """Bytes of all initializers."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
