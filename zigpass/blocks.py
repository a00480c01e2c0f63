"""The repeated blocks of a model (decoder layers), and running a model from the middle on.

A block is the outermost member of an `nn.ModuleList` that holds a linear, such as "model.layers.3". What a block gave
in one run can be replayed in the next, so that a change in block 20 does not cost the 20 blocks before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


def block_name(model: nn.Module, module_name: str) -> str | None:
    """The name of the block that holds a module; None for a module outside every block."""
    module: nn.Module = model
    parts = module_name.split(".")
    for depth, part in enumerate(parts):
        if isinstance(module, nn.ModuleList):
            return ".".join(parts[: depth + 1])
        module = module.get_submodule(part)
    return None


class BlockRecord:
    """What each block gave in one run of the model, in the order the blocks ran."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._blocks = {name: model.get_submodule(name) for name in names}
        self._outputs: dict[str, Any] = {}
        self._repeated = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the output of every block that runs while the context is open."""
        self._outputs, self._repeated = {}, False
        with ExitStack() as stack:
            for name, block in self._blocks.items():

                def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                    self._repeated |= name in self._outputs
                    self._outputs[name] = output

                stack.callback(block.register_forward_hook(keep).remove)
            yield

    @contextmanager
    def replaying_before(self, name: str | None) -> Iterator[None]:
        """Blocks that ran before this one give what they gave, without running, while the context is open.

        Nothing is replayed for None, or where a block runs more than once (then the order says nothing).
        """
        order = list(self._outputs)
        earlier = order[: order.index(name)] if name in order and not self._repeated else []
        with ExitStack() as stack:
            for other in earlier:
                stack.enter_context(replaced_forward(self._blocks[other], Replay(self._outputs[other])))
            yield


class Replay:
    """A forward that gives what a block gave before."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Copies, because the model may go on in place.
        if isinstance(self.output, tuple):
            return tuple(part.clone() if isinstance(part, Tensor) else part for part in self.output)
        return self.output.clone()


@contextmanager
def replaced_forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """Let a module's forward be another function while the context is open; hooks still run."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
