"""Quantized weights of models that were compiled without `prepare`: packed when the compiled graph runs, and kept.

The compiled graph gets the packed tensors as further inputs, never as constants: one graph serves every layer of the
same shape. What they were packed from is looked up at each call, and packed again when it was replaced or written to.
This is the way for trying zigpass out: the originals stay in memory beside the packed weights, and as nothing holds
thresholds, every input entry is active. `prepare` is the fast way.
"""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import _disable_current_modes

from zigpass.passes import Linear, PackedLeaf, fake_value
from zigpass.runtime import PackedWeight, ZigpassError, pack

from .formats.dequantized_linear import LeafCall
from .formats.registry import find_recognizer
from .formats.verify import check_recovered
from .manifest import PACKED_NAMES

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One quantized weight of a graph.

    Attributes:
        name: of its layer.
        call: how it is made of its tensors.
        key: the same for equal calls.
        positions: which inputs of the graph these are.
    """

    name: str
    call: LeafCall
    key: str
    positions: tuple[int, ...]

    def packed(self, inputs: Sequence[Any]) -> PackedWeight:
        """From the cache; else recovered, compared with what the graph would compute, and packed."""
        sources = [inputs[position] for position in self.positions]
        tensors = [part for source in sources for part in _with_inner(source)]
        key = (*map(id, tensors), self.key)
        entry = _cache.get(key)
        state = tuple(map(_state, tensors))
        if entry is not None and entry.state == state:
            return entry.packed
        packed = self._pack(sources)

        def forget(_: weakref.ref[Tensor]) -> None:
            _cache.pop(key, None)

        _cache[key] = _Entry(tuple(weakref.ref(tensor, forget) for tensor in tensors), state, packed)
        return packed

    def _pack(self, sources: Sequence[Tensor]) -> PackedWeight:
        # A backend may be called while values are faked, a compiled graph in inference mode; the cache outlives both.
        with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
            try:
                return _pack(self.call.module(sources, None))
            except ZigpassError as error:
                raise ZigpassError(f"{self.name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Packed tensors and the state of what they were packed from; the references remove the entry with its tensors."""

    references: tuple[weakref.ref[Tensor], ...]
    state: tuple[tuple[int, int], ...]
    packed: PackedWeight


_cache: dict[tuple[object, ...], _Entry] = {}
"""By the identity of the tensors and by how they are dequantized. An entry goes when one of its tensors does."""


def clear_cache() -> None:
    """Forget all weights that were packed at run time."""
    _cache.clear()


class RuntimeWeights:
    """Packs the weights of one graph; `Context.packer` for a graph that Dynamo captured.

    Args:
        gm: the graph that is rewritten.
        example_inputs: the tensors behind its placeholders.
    """

    def __init__(self, gm: GraphModule, example_inputs: Sequence[Any]) -> None:
        self._position = {node: index for index, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
        self._examples = list(example_inputs)
        self._weights: list[tuple[_Weight, str]] = []
        self._added: dict[Node, PackedLeaf] = {}

    def __call__(self, gm: GraphModule, linear: Linear) -> PackedLeaf | str:
        leaf = linear.leaf
        assert leaf is not None
        if leaf.node in self._added:
            return self._added[leaf.node]
        if not all(node in self._position and _is_model_state(node) for node in leaf.sources):
            return "its tensors are not parameters or buffers of a module"
        call = LeafCall.of(leaf)
        weight = _Weight(linear.module, call, repr(call), tuple(self._position[node] for node in leaf.sources))
        try:
            packed = weight.packed(self._examples)
        except ZigpassError as error:
            return str(error)
        self._weights.append((weight, packed.layout.spec))
        self._added[leaf.node] = PackedLeaf(tuple(_add_inputs(gm, packed, linear.module)), packed.layout.spec)
        logger.info("%s (%s) is packed at run time; zigpass.prepare packs it once", linear.module, leaf.representation)
        return self._added[leaf.node]

    @property
    def example_inputs(self) -> list[Any]:
        """The inputs of the rewritten graph."""
        return [*self._examples, *_tensors(self._weights, self._examples)]

    def bind(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled graph as Dynamo calls it, without the inputs that were added."""
        weights = self._weights  # and not the example inputs, which would stay alive
        return (lambda *inputs: compiled(*inputs, *_tensors(weights, inputs))) if weights else compiled


def _tensors(weights: Sequence[tuple[_Weight, str]], inputs: Sequence[Any]) -> Iterator[Tensor]:
    """The packed tensors of weights that a graph was compiled for in these layouts."""
    for weight, spec in weights:
        packed = weight.packed(inputs)
        if packed.layout.spec != spec:
            raise ZigpassError(
                f"{weight.name}: compiled for a weight of the form {spec}, called with {packed.layout.spec}; call"
                " zigpass.prepare on the model"
            )
        yield from packed.tensors


def _pack(module: nn.Module) -> PackedWeight:
    recognizer = find_recognizer(module)
    if recognizer is None:
        raise ZigpassError("not a representation that zigpass knows")
    refusal = recognizer.refusal(module)
    if refusal is not None:
        raise ZigpassError(refusal)
    weight = recognizer.recover(module).weight
    check_recovered(recognizer, weight, recognizer.dequantize(module))
    return pack(weight)


def _state(tensor: Tensor) -> tuple[int, int]:
    """Changes when a tensor is written to, by an operation or through `.data`."""
    if tensor.is_inference():
        raise ZigpassError(
            "its tensors were made under torch.inference_mode(), so that changes to them cannot be seen; call"
            " zigpass.prepare on the model"
        )
    return tensor._version, 0 if hasattr(tensor, "__tensor_flatten__") else tensor.data_ptr()


def _with_inner(tensor: Tensor) -> list[Tensor]:
    """A tensor and, of a tensor subclass, those inside it: what is written to the whole counts only on the whole."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [tensor, *(part for name in names for part in _with_inner(getattr(tensor, name)))]


def _is_model_state(node: Node) -> bool:
    """Whether an input of the graph is a parameter or a buffer; others may be new at every call."""
    if isinstance(node.meta.get("example_value"), nn.Parameter):
        return True
    name = getattr(getattr(node, "_dynamo_source", None), "name", "")
    return "_parameters[" in name or "_buffers[" in name


def _add_inputs(gm: GraphModule, packed: PackedWeight, name: str) -> list[Node]:
    """Placeholders for packed tensors, behind those that are there."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    mode = detect_fake_mode([fake_value(node) for node in placeholders])
    assert mode is not None  # Dynamo's graphs carry fake values
    nodes: list[Node] = []
    for part, tensor in zip(PACKED_NAMES, packed.tensors, strict=False):
        with gm.graph.inserting_after(nodes[-1] if nodes else placeholders[-1]):
            node = gm.graph.placeholder(f"{name}_{part}".replace(".", "_"))
        node._dynamo_source = None  # Inductor looks for it
        # It lives at one address from call to call, so CUDA graphs need no copy of it.
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        node.meta["example_value"] = mode.from_tensor(tensor, static_shapes=True)
        nodes.append(node)
    return nodes
