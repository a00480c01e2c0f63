"""How a float weight is to be quantized."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Final, Literal

import torch

from zigpass.runtime.errors import ZigpassError
from zigpass.runtime.layout import BLOCK_ROWS, SUPPORTED_BITS, ScaleAxis

Method = Literal["mse", "rtn", "gptq"]
METHODS: Final[tuple[Method, ...]] = ("mse", "rtn", "gptq")
SCALE_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclasses.dataclass(frozen=True)
class ZigzagConfig:
    """Settings of `quantize_`. Round-trips through JSON.

    Attributes:
        bits: width of a code: 2, 4 or 8.
        group_size: inputs that share a scale (`scale_axis` "in"). Where it does not divide K the last group is
            shorter. With `scale_axis` "out" the blocks are 32 rows and this is not used.
        scale_axis: "in" for a scale and integer zero point per (row, group of inputs), "out" for the paper's column
            form with 6-bit scales and minimums (4.5 bits a weight at 4 bits).
        method: "mse" searches each group's range for the least squared error; "rtn" takes the full range;
            "gptq" also lets later columns make up for the error of earlier ones, and needs calibration text.
        scale_dtype: "float16", "bfloat16" or "float32", for `scale_axis` "in".
        band: rows of a band of the zigzag layout; None for one band of all rows, which is best on CPUs.

    Raises:
        ZigpassError: a value is out of range.
    """

    bits: int = 4
    group_size: int = 128
    scale_axis: ScaleAxis = "in"
    method: Method = "mse"
    scale_dtype: str = "float16"
    band: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS:
            raise ZigpassError(f"bits must be one of {SUPPORTED_BITS}, got {self.bits!r}")
        if self.scale_axis not in ("in", "out"):
            raise ZigpassError(f'scale_axis must be "in" or "out", got {self.scale_axis!r}')
        if not isinstance(self.group_size, int) or self.group_size <= 0:
            raise ZigpassError(f"group_size must be a positive whole number, got {self.group_size!r}")
        if self.method not in METHODS:
            raise ZigpassError(f"method must be one of {METHODS}, got {self.method!r}")
        if self.scale_dtype not in SCALE_DTYPES:
            raise ZigpassError(f"scale_dtype must be one of {tuple(SCALE_DTYPES)}, got {self.scale_dtype!r}")
        if self.band is not None and (self.band <= 0 or self.band % BLOCK_ROWS):
            raise ZigpassError(f"band must be a positive multiple of {BLOCK_ROWS} or None, got {self.band!r}")

    def short_group(self, in_features: int) -> int:
        """Inputs in a shorter last group; 0 when the groups divide `in_features` or one group takes them all."""
        if self.scale_axis == "out" or in_features <= self.group_size:
            return 0
        return in_features % self.group_size

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> ZigzagConfig:
        """Read what `to_json` wrote.

        Raises:
            ZigpassError: not JSON, an unknown field, or a value out of range.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            return ZigzagConfig(**fields)
        except (json.JSONDecodeError, TypeError) as error:
            raise ZigpassError(f"not a ZigzagConfig: {error}") from error
