"""Models as graphs with quantized weights: `torch.export`, then PT2E of torchao, weights only."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

GROUP_SIZE: Final = 32
LOW, HIGH = -8, 7


class LastLogits(nn.Module):
    """One step without a cache: token ids [1, T] -> logits of the last one; the same inputs for all families."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.fixed = {name: value for name, value in inputs.items() if name != "input_ids"}

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False, **self.fixed).logits
        return logits


def quantize_exported(model: nn.Module, inputs: dict[str, Tensor], kind: str) -> GraphModule:
    """The graph of `LastLogits` with every linear weight but the head's in 4 bits, as PT2E converts it.

    Args:
        model: a float Hugging Face model.
        inputs: what it is called with; "input_ids" stays an input of the graph.
        kind: "affine" for `torchao.dequantize_affine` in groups, "channel" for `quantized_decomposed` per row.
    """
    step, tokens = LastLogits(model, inputs), inputs["input_ids"]
    with torch.no_grad():
        return quantize_graph(torch.export.export(step, (tokens,)).module(), tokens, kind)


def quantize_graph(graph: nn.Module, example: Tensor, kind: str) -> GraphModule:
    """PT2E on the linear weights of an exported graph but the output head's.

    Args:
        graph: `torch.export.export(...).module()`.
        example: what it is called with.
        kind: as for `quantize_exported`, or "tensor" for `quantized_decomposed` with one scale.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    observed = prepare_pt2e(graph, _weight_quantizer(kind))
    observed(example)
    converted: GraphModule = convert_pt2e(observed)
    return converted


def _weight_quantizer(kind: str) -> Any:
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer

    class WeightsOnly(Quantizer):  # type: ignore[misc]  # torchao is not type-checked here
        def annotate(self, model: GraphModule) -> GraphModule:
            for node in model.graph.nodes:
                if node.target is torch.ops.aten.linear.default and "lm_head" not in str(
                    node.meta.get("nn_module_stack")
                ):
                    spec = {node.args[1]: _weight_spec(kind)}
                    node.meta["quantization_annotation"] = QuantizationAnnotation(spec, _annotated=True)
            return model

        def validate(self, model: GraphModule) -> None:
            pass

    return WeightsOnly()


def _weight_spec(kind: str) -> Any:
    from torchao.quantization import MappingType, PerGroup
    from torchao.quantization.pt2e._affine_quantization import AffineQuantizedMinMaxObserver
    from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    if kind == "channel":
        return QuantizationSpec(
            torch.int8, PerChannelMinMaxObserver, LOW, HIGH, qscheme=torch.per_channel_symmetric, ch_axis=0
        )
    if kind == "tensor":
        return QuantizationSpec(torch.int8, MinMaxObserver, LOW, HIGH, qscheme=torch.per_tensor_symmetric)
    observer = AffineQuantizedMinMaxObserver.with_args(
        mapping_type=MappingType.ASYMMETRIC,
        target_dtype=torch.int8,
        granularity=PerGroup(GROUP_SIZE),
        quant_min=LOW,
        quant_max=HIGH,
        eps=1e-9,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int32,
    )
    return QuantizationSpec(torch.int8, observer, LOW, HIGH)
