"""The activations that a gated MLP may have in an ONNX file.

Files made elsewhere spell one function in several ways, whose results may differ in the last bit. An imported MLP keeps
its own spelling, so that its numbers stay the same.
"""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True)
class Activation:
    """One spelling.

    Attributes:
        name: its part of a node's name.
        torch_name: a key of `zigpass.runtime.reference.ACTIVATIONS`.
        body: ONNX text that computes `activated` from `gate`.
        least_opset: of the default domain.
    """

    name: str
    torch_name: str
    body: str
    least_opset: int = 15

    @property
    def needs_microsoft(self) -> bool:
        return "com.microsoft" in self.body


_ALL: Final = (
    Activation("Silu", "silu", "sigmoid = Sigmoid (gate)\n activated = Mul (gate, sigmoid)"),
    Activation("Gelu", "gelu", 'activated = Gelu <approximate = "none"> (gate)', 20),
    Activation("GeluTanh", "gelu_tanh", 'activated = Gelu <approximate = "tanh"> (gate)', 20),
    Activation("Relu", "relu", "activated = Relu (gate)"),
    Activation("Relu2", "relu2", "positive = Relu (gate)\n activated = Mul (positive, positive)"),
    Activation("Swish", "silu", "activated = Swish (gate)", 24),
    Activation("QuickGelu", "silu", "activated = com.microsoft.QuickGelu <alpha = 1.0> (gate)"),
    Activation("MicrosoftGelu", "gelu", "activated = com.microsoft.Gelu (gate)"),
    Activation("FastGelu", "gelu_tanh", "activated = com.microsoft.FastGelu (gate)"),
)
ACTIVATIONS: Final[dict[str, Activation]] = {activation.name: activation for activation in _ALL}
OF_TORCH: Final[dict[str, Activation]] = {activation.torch_name: activation for activation in reversed(_ALL)}
"""torch's name -> the spelling in standard ops that an export writes."""
