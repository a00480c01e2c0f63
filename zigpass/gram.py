"""Gram matrices of the inputs of linears, block by block, while the linears are being quantized.

The inputs of a block are those it has once all blocks before it are quantized, so later layers are fitted to what they
will really see. Memory: the Gram matrices of one block and one activation per window, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from zigpass.runtime import ZigpassError

from .blocks import Replay, block_name, replaced_forward
from .float_linears import weight_of
from .observe import device_of
from .progress import track
from .sites import site_name


def layers_with_grams(
    model: nn.Module, names: Sequence[str], windows: Tensor, *, progress: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Yield each linear with the Gram matrix of its inputs, float32 [K, K], in the order the model runs its blocks.

    The caller replaces the linear before it asks for the next one.

    Args:
        names: qualified names of the linears.
        windows: int64 [windows, T], what the model reads.

    Raises:
        ZigpassError: an input holds NaN or infinity.
    """
    walk = _Walk(model, windows)
    by_block: dict[str | None, list[str]] = {}
    for name in names:
        by_block.setdefault(block_name(model, name), []).append(name)
    blocks = [block for block in walk.order if block in by_block]
    for block in track(blocks, "quantizing blocks", show=progress):
        yield from walk.grams(block, by_block.pop(block))
    for rest in by_block.values():  # outside every block, or in a block that did not run
        yield from walk.grams(None, rest)


class _Stop(Exception):
    """The block of interest has run."""


class _Walk:
    def __init__(self, model: nn.Module, windows: Tensor) -> None:
        self._model = model
        self._windows = windows.to(device_of(model))
        self.order = self._run_order()
        self._done: str | None = None
        """The last block whose final output is in `_outputs`."""
        self._outputs: list[Any] = [None] * len(windows)

    def grams(self, block: str | None, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Run all windows up to the end of a block (None: to the end of the model) and watch these linears."""
        grams: dict[str, Tensor] = {}
        previous = self._before(block)
        for index, ids in enumerate(self._windows):
            self._outputs[index] = self._run(ids, self._outputs[index], previous, block, names, grams)
        self._done = previous
        for name in names:
            key = site_name(name)
            if key not in grams:
                size = weight_of(self._model.get_submodule(name)).shape[1]
                grams[key] = torch.zeros(size, size)
            if not bool(torch.isfinite(grams[key]).all()):
                raise ZigpassError(f"{name}: its inputs hold NaN or infinite values on the calibration text")
            yield name, grams[key]

    def _before(self, block: str | None) -> str | None:
        """The block just before this one; the last block for None."""
        position = self.order.index(block) if block is not None else len(self.order)
        return self.order[position - 1] if position else None

    def _run(
        self,
        ids: Tensor,
        known: Any,
        previous: str | None,
        block: str | None,
        names: list[str],
        grams: dict[str, Tensor],
    ) -> Any:
        """One window; gives the output of the block `previous`, which is quantized by now."""
        kept = []
        with ExitStack() as stack:
            for name in self.order[: self.order.index(self._done) + 1] if self._done else []:
                stack.enter_context(replaced_forward(self._model.get_submodule(name), Replay(known)))

            def keep(module: nn.Module, args: Any, output: Any) -> None:
                kept.append(output)

            def stop(module: nn.Module, args: Any, output: Any) -> None:
                raise _Stop

            if previous is not None:
                stack.callback(self._model.get_submodule(previous).register_forward_hook(keep).remove)
            if block is not None:
                stack.callback(self._model.get_submodule(block).register_forward_hook(stop).remove)
            for key, name in {site_name(name): name for name in reversed(names)}.items():
                hook = _Accumulate(grams, key)
                stack.callback(self._model.get_submodule(name).register_forward_pre_hook(hook).remove)
            with torch.inference_mode(), suppress(_Stop):
                self._model(ids.unsqueeze(0), use_cache=False)
        return kept[0] if kept else None

    def _run_order(self) -> list[str]:
        """Blocks in the order they run; none where one runs twice, because then each has several inputs."""
        order: list[str] = []
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                if name and block_name(self._model, name) == name:

                    def note(module: nn.Module, args: Any, name: str = name) -> None:
                        order.append(name)

                    stack.callback(module.register_forward_pre_hook(note).remove)
            with torch.inference_mode():
                self._model(self._windows[:1, :2], use_cache=False)
        return order if len(order) == len(set(order)) else []


class _Accumulate:
    """A hook that adds x x^T of what a linear reads."""

    def __init__(self, grams: dict[str, Tensor], key: str) -> None:
        self._grams, self._key = grams, key

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].reshape(-1, args[0].shape[-1]).float()
        total = self._grams.setdefault(self._key, torch.zeros(x.shape[1], x.shape[1], device=x.device))
        total.addmm_(x.T, x)
