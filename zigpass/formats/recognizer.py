"""What a recognizer of quantized linears is."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor, nn

from zigpass.runtime import QuantizedWeight


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What a module holds: its weight as codes and scales, and its bias [N] or None."""

    weight: QuantizedWeight
    bias: Tensor | None


class Recognizer(abc.ABC):
    """Knows the modules of one representation and gets their codes and scales out, without requantizing.

    Subclasses live in one file each and are listed in `registry.RECOGNIZERS`. `prepare` asks `recognizes` and
    `refusal` of every module before it changes anything, then takes layer by layer what `recover` gives, after
    comparing it with what the module's own library makes of the same module.

    Attributes:
        name: the representation, as a user calls it.
        kept: what is relaid, for the support table.
        exactness: what the comparison with the module's own dequantization asks for, for the support table.
        refused: what is turned down, for the support table.
    """

    name: str
    kept: str
    exactness: str
    refused: str

    @abc.abstractmethod
    def recognizes(self, module: nn.Module) -> bool:
        """Whether the module is of this representation, usable or not. Decided by names and attributes only."""

    @abc.abstractmethod
    def refusal(self, module: nn.Module) -> str | None:
        """Why a recognized module cannot be taken, as a sentence; None when it can. Reads no weight data."""

    @abc.abstractmethod
    def recover(self, module: nn.Module) -> Recovered:
        """Codes, scales and bias of a module that `refusal` let through.

        Raises:
            ZigpassError: the stored tensors do not fit together.
        """

    @abc.abstractmethod
    def dequantize(self, module: nn.Module) -> Tensor:
        """The weight [N, K] as the module's own code computes it."""

    def rounded(self, weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
        """The weight [N, K] that the library's arithmetic in `dtype` gives for these codes and scales.

        Unless a library rounds on the way, that is the float32 meaning rounded once.
        """
        return weight.dequantize().to(dtype)

    def tolerance(self, weight: QuantizedWeight) -> Tensor | None:
        """How far the module's weights may be from the recovered ones, [N, K]; None, the rule, for not at all."""
        return None

    def leave(self, model: nn.Module) -> None:  # noqa: B027  # most representations leave nothing behind
        """Called once when no module of this representation is left in the model."""
