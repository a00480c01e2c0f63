"""The ops of ONNX domain `zigpass`, version 1: their names, inputs and attributes.

An ONNX function has one body, so what a torch op decides from its arguments is part of the name here:

    Linear<form>(X, threshold, <weight>)
    GatedMlp<activation><form>(X, threshold_in, threshold_mid, <gate>, <up>, <down>)

X and the result are float32. A form says how the weight is stored and which inputs it takes (`WeightForm`); all three
weights of an MLP have the same one. Biases, act-order and everything else are standard nodes around these.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from .activations import ACTIVATIONS, Activation

DOMAIN: Final = "zigpass"
VERSION: Final = 1

ZeroForm = Literal["SubInt", "SubFloat", "AddFloat", "Column", "NBits", "NBitsZero"]
_PARTS: Final[dict[ZeroForm, tuple[str, ...]]] = {
    "SubInt": ("scale", "zero"),
    "SubFloat": ("scale", "zero"),
    "AddFloat": ("scale", "minimum"),
    "Column": ("d", "dmin", "scale6", "min6"),
    "NBits": ("scale",),
    "NBitsZero": ("scale", "zero"),
}


@dataclasses.dataclass(frozen=True)
class WeightForm:
    """How a weight [N, K] is stored in an ONNX file.

    `SubInt`, `SubFloat`, `AddFloat` and `Column` are the zero kinds of `zigpass.runtime.Layout`: codes are UINT4
    [K, N], scales and zeros [groups of K, N]. With 8 bits there are two code matrices, the high and the low halves of
    each code, because stock runtimes are fast on 4-bit matrices only; 2-bit codes are stored in 4 bits.
    `NBits` and `NBitsZero` are the inputs of com.microsoft's MatMulNBits, as they come from an imported file.
    """

    bits: Literal[4, 8]
    zero: ZeroForm

    @property
    def name(self) -> str:
        return f"{self.bits}{self.zero}"

    @property
    def is_nbits(self) -> bool:
        return self.zero in ("NBits", "NBitsZero")

    @property
    def code_parts(self) -> tuple[str, ...]:
        """The inputs that hold codes."""
        return ("codes",) if self.bits == 4 or self.is_nbits else ("high", "low")

    @property
    def parts(self) -> tuple[str, ...]:
        """All inputs of the weight, in order."""
        if self.zero == "SubInt" and self.bits == 8:
            return (*self.code_parts, "scale", "zero_high", "zero_low")
        return (*self.code_parts, *_PARTS[self.zero])


@dataclasses.dataclass(frozen=True)
class OpName:
    """One op of the domain.

    Attributes:
        form: of its weights.
        activation: of an MLP; None for a linear.
    """

    form: WeightForm
    activation: Activation | None = None

    def __str__(self) -> str:
        kind = "Linear" if self.activation is None else f"GatedMlp{self.activation.name}"
        return f"{kind}{self.form.name}"

    @property
    def weights(self) -> tuple[str, ...]:
        """Prefixes of the weights' inputs, in order."""
        return ("",) if self.activation is None else ("gate_", "up_", "down_")

    @property
    def thresholds(self) -> tuple[str, ...]:
        return ("threshold",) if self.activation is None else ("threshold_in", "threshold_mid")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs, in order."""
        parts = (f"{weight}{part}" for weight in self.weights for part in self.form.parts)
        return ("X", *self.thresholds, *parts)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of all attributes; see `bodies` and `weights` for what they mean."""
        names = ["layout"]
        if self.form.is_nbits:
            names += ["block_size", "N", "K"]
            return (*tuple(f"{weight}{name}" for weight in self.weights for name in names), "bits", "accuracy_level")
        names.append("num_rows" if self.form.zero == "Column" else "group_size")
        return tuple(f"{weight}{name}" for weight in self.weights for name in names)


def all_op_names() -> list[OpName]:
    """Every op of the domain."""
    forms = [WeightForm(bits, zero) for bits in (4, 8) for zero in _PARTS]
    return [OpName(form, activation) for form in forms for activation in (None, *ACTIVATIONS.values())]
