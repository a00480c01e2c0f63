"""The safetensors files of a model folder: one, or shards with an index as Hugging Face writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from zigpass.runtime import ZigpassError
from zigpass.runtime.errors import raise_collected

SINGLE_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
ALIGNMENT: Final = 64


class TensorFiles:
    """Tensors by name, wherever they lie; a context manager that keeps the files open.

    Args:
        folder: with `model.safetensors`, or shards and `model.safetensors.index.json`.

    Attributes:
        path: the file to name in a message about the whole model.
        metadata: what the file, or the index of the shards, says besides.
        names: all tensors.

    Raises:
        ZigpassError: a file is missing, cut short, foreign, or lacks a tensor that the index says is in it; each such
            file is named.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        single, index = folder / SINGLE_NAME, folder / INDEX_NAME
        self._files: dict[str, Any] = {}
        if single.is_file() or not index.is_file():
            self.path = single
            file = self._open(single)
            self.metadata: dict[str, str] = dict(file.metadata() or {})
            self._files = dict.fromkeys(file.keys(), file)
        else:
            self.path = index
            weight_map, self.metadata = _read_index(index)
            self._open_shards(folder, weight_map)
        self.names = set(self._files)

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor.

        Returns:
            It lies at a multiple of `ALIGNMENT` bytes, as torch's own do. A file puts tensors anywhere, and where one
            lies decides which instructions a BLAS takes: the same linear gave other last bits on an AMD CPU.

        Raises:
            ZigpassError: no file has it, or it cannot be read.
        """
        if name not in self._files:
            raise ZigpassError(f"{self.path}: {name}: missing in the file")
        try:
            tensor: Tensor = self._files[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ZigpassError(f"{self.path}: {name} cannot be read ({error})") from error
        return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open_shards(self, folder: Path, weight_map: dict[str, str]) -> None:
        shards = dict.fromkeys(weight_map.values())
        opened = {shard: self._try_to_open(folder / Path(shard).name) for shard in shards}
        failures = [str(file) for file in opened.values() if isinstance(file, ZigpassError)]
        raise_collected(failures, f"{self.path}: these of its {len(shards)} shards cannot be read:")
        held = {shard: set(file.keys()) for shard, file in opened.items()}
        lacking = (f"{shard}: {name}" for name, shard in weight_map.items() if name not in held[shard])
        raise_collected(lacking, f"{self.path}: shards lack tensors that the index says are in them:")
        self._files = {name: opened[shard] for name, shard in weight_map.items()}

    def _try_to_open(self, path: Path) -> Any:
        try:
            return self._open(path)
        except ZigpassError as error:
            return error

    def _open(self, path: Path) -> Any:
        if not path.is_file():
            raise ZigpassError(f"{path}: no such file")
        try:
            return self._stack.enter_context(safe_open(str(path), framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ZigpassError(
                f"{path}: truncated or not a safetensors file ({error}); fetch or save it again"
            ) from error


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        weight_map = {str(name): str(shard) for name, shard in document["weight_map"].items()}
        return weight_map, dict(document.get("metadata", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZigpassError(f"{path}: not an index of safetensors files ({error!r})") from error


def remove_others(folder: Path, kept: Iterable[str]) -> None:
    """Delete the weight files of a model that was saved into the folder before, except those named."""
    names = set(kept)
    for path in (*folder.glob("model-*-of-*.safetensors"), folder / SINGLE_NAME, folder / INDEX_NAME):
        if path.name not in names:
            path.unlink(missing_ok=True)
