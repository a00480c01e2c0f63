"""Representations of quantized weights, for the support table: how a tiny float model gets each of them.

A representation is made by its own library where that runs on CPUs, else from its public definition
(`quantized_modules`, and torchao's own tensor class for what torchao makes on CUDA only).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from zigpass.config import ZigzagConfig
from zigpass.float_linears import bias_of, is_float_linear, weight_of
from zigpass.formats.registry import find_recognizer
from zigpass.gate_up import HALVES, GateUp
from zigpass.linear import find_linears
from zigpass.quantize import quantize_
from zigpass.replace import replace_module

from .quantized_modules import AwqLinear, GptqLinear, Groups, round_to_groups

GROUP_SIZE: Final = 32

Weights = dict[str, Tensor]
"""Float weights [N, K] by name that compute what the quantized linears do."""
Make = Callable[[Tensor, "Tensor | None"], tuple[nn.Module, Tensor]]
"""(weight [N, K], bias) -> a quantized linear and the weight that it stands for."""


@dataclasses.dataclass(frozen=True)
class Representation:
    """One column of the table.

    Attributes:
        quantize: changes a float model in place and returns what its weights are then. What it makes is packed
            already, or for `prepare`.
        package: what has to be installed for it.
        how: made by its library, or from its definition.
    """

    quantize: Callable[[nn.Module], Weights]
    how: str
    package: str | None = None

    @property
    def missing(self) -> str | None:
        """The package that is not installed."""
        return self.package if self.package and importlib.util.find_spec(self.package) is None else None


def with_quantize(model: nn.Module) -> Weights:
    quantize_(model, ZigzagConfig(group_size=GROUP_SIZE), progress=False)
    weights = {name: linear.unpack().dequantize() for name, linear in find_linears(model)}
    for name, module in model.named_modules():
        if isinstance(module, GateUp):
            weights[name] = torch.cat([weights.pop(f"{name}.{half}") for half in HALVES])
    return weights


def one_by_one(make: Make) -> Callable[[nn.Module], Weights]:
    """Replace every float linear but the output head."""

    def quantize(model: nn.Module) -> Weights:
        weights = {}
        for name, module in list(model.named_modules()):
            if is_float_linear(module) and not _is_head(name):
                new, weights[name] = make(weight_of(module).detach().contiguous(), _bias(module))
                replace_module(model, name, new)
        return weights

    return quantize


def with_torchao(make_config: Callable[[], Any]) -> Callable[[nn.Module], Weights]:
    """torchao's `quantize_`, which takes `nn.Linear` and its subclasses."""

    def quantize(model: nn.Module) -> Weights:
        from torchao.quantization import quantize_ as torchao_quantize_

        def takes(module: nn.Module, name: str) -> bool:
            return isinstance(module, nn.Linear) and not _is_head(name)

        torchao_quantize_(model, make_config(), takes)
        found = ((name, module, find_recognizer(module)) for name, module in model.named_modules())
        return {name: recognizer.dequantize(module).float() for name, module, recognizer in found if recognizer}

    return quantize


def _intx() -> Any:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP_SIZE))  # type: ignore[attr-defined]


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def _int4_opaque(algorithm: str) -> Callable[[], Any]:
    def make() -> Any:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

        chosen = Int4ChooseQParamsAlgorithm[algorithm]
        return PrototypeInt4WeightOnlyConfig(GROUP_SIZE, chosen, set_inductor_config=False)

    return make


def _int4_plain(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
    from torchao.quantization import Int4Tensor

    groups = round_to_groups(weight, GROUP_SIZE)
    codes = groups.codes - 8
    packed = ((codes[:, 1::2] << 4) | (codes[:, ::2] & 15)).to(torch.uint8).view(torch.int8)
    zero = groups.scales * (8 - groups.zeros)
    parts = (packed, groups.scales.T.contiguous(), zero.T.contiguous())
    return _linear(Int4Tensor(*parts, [1, GROUP_SIZE], weight.shape), bias), groups.dequantize()


def _int4_tiled(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
    """Of the right class and sizes; on a CPU nothing can tell whether the codes are in the right order."""
    from torchao.quantization import Int4TilePackedTo4dTensor

    rows, columns = -(-weight.shape[0] // 8) * 8, -(-weight.shape[1] // 1024) * 1024
    qdata = torch.zeros(rows // 8, columns // 128, 32, 4, dtype=torch.int32)
    scale_and_zero = torch.zeros(columns // GROUP_SIZE, rows, 2, dtype=torch.bfloat16)
    return _linear(Int4TilePackedTo4dTensor(qdata, scale_and_zero, [1, GROUP_SIZE], weight.shape), bias), weight


def _gptq(version: int) -> Make:
    def make(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
        (n, k), groups = weight.shape, round_to_groups(weight, GROUP_SIZE)
        module = GptqLinear(n, k, GROUP_SIZE, version=version, bias=bias, groups=groups)
        return module, groups.dequantize()

    return make


def _gptq_act_order(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
    """Groups of inputs that are not neighbours."""
    n, k = weight.shape
    order = torch.randperm(k, generator=torch.Generator().manual_seed(0))
    groups, back = round_to_groups(weight[:, order], GROUP_SIZE), order.argsort()
    in_order = Groups(groups.codes[:, back], groups.zeros, groups.scales)
    module = GptqLinear(n, k, GROUP_SIZE, bias=bias, groups=in_order, g_idx=back // GROUP_SIZE)
    return module, groups.dequantize()[:, back]


def _awq(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
    (n, k), groups = weight.shape, round_to_groups(weight, GROUP_SIZE)
    return AwqLinear(n, k, GROUP_SIZE, bias=bias, groups=groups), groups.dequantize()


def _hqq(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=GROUP_SIZE, axis=1)
    module: Any = HQQLinear(_linear(weight, bias), config, compute_dtype=torch.float32, device="cpu")
    return module, module.dequantize().detach().clone()


def _compressed_tensors(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
    from compressed_tensors.compressors.base import compress_module
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle import initialize_module_for_quantization

    linear: Any = _linear(weight.clone(), bias)
    groups = round_to_groups(weight, GROUP_SIZE)
    arguments = QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=GROUP_SIZE)
    initialize_module_for_quantization(linear, QuantizationScheme(targets=["Linear"], weights=arguments))
    linear.weight_scale.data.copy_(groups.scales)
    linear.weight_zero_point.data.copy_(groups.zeros - 8)
    compress_module(linear)
    return linear, groups.dequantize()


def _bitsandbytes(weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, Tensor]:
    from bitsandbytes.nn import Linear4bit

    return Linear4bit(weight.shape[1], weight.shape[0], bias=bias is not None), weight


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _bias(module: nn.Module) -> Tensor | None:
    bias = bias_of(module)
    return None if bias is None else bias.detach().clone()


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] == "lm_head"


LIBRARY: Final = "its library"
DEFINITION: Final = "its definition"
REPRESENTATIONS: Final[dict[str, Representation]] = {
    "`quantize_`": Representation(with_quantize, LIBRARY),
    "torchao Intx int4": Representation(with_torchao(_intx), LIBRARY, "torchao"),
    "torchao Int8": Representation(with_torchao(_int8), LIBRARY, "torchao"),
    "torchao Int4 CPU": Representation(with_torchao(_int4_opaque("TINYGEMM")), LIBRARY, "torchao"),
    "torchao Int4 CPU, HQQ": Representation(with_torchao(_int4_opaque("HQQ")), LIBRARY, "torchao"),
    "torchao Int4 plain": Representation(one_by_one(_int4_plain), DEFINITION, "torchao"),
    "torchao Int4 tile-packed": Representation(one_by_one(_int4_tiled), DEFINITION, "torchao"),
    "GPTQ v1": Representation(one_by_one(_gptq(1)), DEFINITION),
    "GPTQ v2": Representation(one_by_one(_gptq(2)), DEFINITION),
    "GPTQ act-order": Representation(one_by_one(_gptq_act_order), DEFINITION),
    "AWQ": Representation(one_by_one(_awq), DEFINITION),
    "HQQ": Representation(one_by_one(_hqq), LIBRARY, "hqq"),
    "compressed-tensors": Representation(one_by_one(_compressed_tensors), LIBRARY, "compressed_tensors"),
    "bitsandbytes NF4": Representation(one_by_one(_bitsandbytes), LIBRARY, "bitsandbytes"),
}
"""By the title of the column. Graphs of PT2E and GGUF files are made of whole models: `exported`, `gguf_files`."""
