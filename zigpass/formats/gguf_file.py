"""Opening a GGUF file so that a damaged or foreign one says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zigpass.runtime import QuantizedWeight, ZigpassError

from .ggml_blocks import read_blocks

MAGIC = b"GGUF"


class GgufFile:
    """Metadata and tensors of a GGUF file, read through the `gguf` package.

    Args:
        path: the file; it stays mapped while this object lives.

    Raises:
        ZigpassError: no such file, not GGUF, or cut short.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ZigpassError("reading GGUF files needs the gguf package: pip install 'zigpass[gguf]'") from error
        self.path = path
        if not path.is_file():
            raise ZigpassError(f"{path}: no such file")
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise ZigpassError(f"{path}: not a GGUF file, it starts with {magic!r} instead of {MAGIC!r}")
        try:
            self._reader = GGUFReader(str(path))
        except Exception as error:  # the reader raises whatever its parsing trips over
            raise ZigpassError(f"{path}: truncated or damaged GGUF file ({error}); fetch it again") from error
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in self._reader.tensors}

    def metadata(self, key: str) -> Any:
        """A metadata value, or None where the file has none of that name."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    @property
    def architecture(self) -> str:
        return str(self.metadata("general.architecture"))

    def type_name(self, name: str) -> str:
        """The GGML type of a tensor, such as "Q4_1"."""
        return str(self.tensors[name].tensor_type.name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in PyTorch's order of dimensions."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def quantized(self, name: str) -> QuantizedWeight:
        """Codes and scales of a matrix, checked against the `gguf` package's own dequantization.

        Raises:
            ZigpassError: a type that cannot be relaid, or codes that do not give the same numbers.
        """
        weight = read_blocks(self.type_name(name), self._data(name))
        if not torch.equal(weight.dequantize(), self.dequantized(name)):
            raise ZigpassError(f"{self.path}: {name}: the relaid weight differs from the {self.type_name(name)} blocks")
        return weight

    def dequantized(self, name: str) -> Tensor:
        """A tensor as float32, in PyTorch's order of dimensions."""
        from gguf import dequantize

        # A copy: the file is mapped read-only and may be closed.
        return torch.from_numpy(np.array(dequantize(self._data(name), self.tensors[name].tensor_type), np.float32))

    def _data(self, name: str) -> NDArray[Any]:
        data: NDArray[Any] = self.tensors[name].data
        return data
