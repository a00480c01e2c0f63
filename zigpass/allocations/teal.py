"""TEAL's greedy allocation: inside each block, sparsity goes where the block's output changes least."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zigpass.observe import device_of, kept_thresholds, set_thresholds, sparse_rows, without_head
from zigpass.progress import track
from zigpass.runtime import ZigpassError

from .budget import Budget, Spread

if TYPE_CHECKING:
    from zigpass.calibration import Calibration
    from zigpass.rules import Rule

STEP = 0.02
"""Share of a block's bytes that one greedy step leaves unread."""
LAST_LEVEL = 0.7
"""Block sparsity at which the greedy search ends; between it and 1 the sites rise in proportion."""

Trajectory = list[dict[str, float]]
"""Sparsity by site after 0, 1, 2, ... steps."""


class Teal:
    """Block-wise greedy search of TEAL (arXiv 2408.14690, algorithm 1); every block gets the same share of its bytes.

    The error is that of the block's output on dense inputs. It does not see how blocks differ, and large activations
    dominate it; `measured` sees what the model's output loses.
    """

    name = "teal"

    def spread(self, calibration: Calibration, rule: Rule, budget: Budget) -> Spread:
        blocks = _sites_by_block(calibration)
        trajectories = _trajectories(calibration, rule, blocks, budget.num_bytes)
        path_of = {name: trajectories[block] for block, names in blocks.items() for name in names}
        return Spread(budget.fill(lambda name, level: _at(path_of[name], name, min(level, 1.0))), self.name)


def _sites_by_block(calibration: Calibration) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in calibration.sites:
        block = calibration.block_of_site[name]
        if block is None:
            raise ZigpassError(f'{name} is in no repeated block of the model, which allocation="teal" works on')
        blocks.setdefault(block, []).append(name)
    return blocks


def _trajectories(
    calibration: Calibration, rule: Rule, blocks: dict[str, list[str]], num_bytes: dict[str, int]
) -> dict[str, Trajectory]:
    stage = f"teal {rule.name}"
    missing = [block for block in blocks if block not in calibration.state.stage(stage)]
    if missing:
        calibration.scores_of(rule)  # before inference mode: the weights of a rule may come from gradients
        calls = _inputs_of_blocks(calibration, missing)
        with kept_thresholds(calibration.model), sparse_rows(calibration.model), torch.inference_mode():
            set_thresholds(calibration.all_sites, {})
            for block in track(missing, "searching blocks", show=calibration.progress):
                search = _BlockSearch(calibration, rule, calibration.model.get_submodule(block), calls.pop(block))
                calibration.state.put(stage, block, search.run({name: num_bytes[name] for name in blocks[block]}))
    return {block: calibration.state.stage(stage)[block] for block in blocks}


def _inputs_of_blocks(calibration: Calibration, blocks: list[str]) -> dict[str, tuple[Any, Any]]:
    """Arguments of each block in a dense run over one window."""
    calls: dict[str, tuple[Any, Any]] = {}
    handles = []
    for name in blocks:

        def keep(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls[name] = (args, kwargs)

        module = calibration.model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.inference_mode():
            ids = calibration.probe_windows[:1].to(device_of(calibration.model))
            without_head(calibration.model)(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _BlockSearch:
    """The greedy search in one block."""

    def __init__(self, calibration: Calibration, rule: Rule, block: nn.Module, call: tuple[Any, Any]) -> None:
        self._calibration, self._rule = calibration, rule
        self._block, (self._args, self._kwargs) = block, call
        self._dense = self._output()

    def run(self, num_bytes: dict[str, int]) -> Trajectory:
        """Steps of equal bytes up to `LAST_LEVEL`, each at the site where it costs least."""
        total = sum(num_bytes.values())
        step = {name: STEP * total / size for name, size in num_bytes.items()}
        sparsity = dict.fromkeys(num_bytes, 0.0)
        path: Trajectory = [dict(sparsity)]
        # Errors grow with every step taken elsewhere, so an old error is a lower bound: only the smallest is renewed.
        queue = [(0.0, -1, name) for name in num_bytes]
        for taken in range(round(LAST_LEVEL / STEP)):
            while queue[0][1] != taken:
                _, _, name = queue[0]
                error = self._error({**sparsity, name: min(sparsity[name] + step[name], 1.0)})
                heapq.heapreplace(queue, (error, taken, name))
            _, _, name = heapq.heappop(queue)
            sparsity[name] = min(sparsity[name] + step[name], 1.0)
            if sparsity[name] < 1.0:
                heapq.heappush(queue, (0.0, -1, name))
            path.append(dict(sparsity))
        self._set(dict.fromkeys(num_bytes, 0.0))
        return path

    def _error(self, sparsity: dict[str, float]) -> float:
        self._set(sparsity)
        return float((self._output() - self._dense).square().sum())

    def _set(self, sparsity: dict[str, float]) -> None:
        for name, share in sparsity.items():
            self._calibration.sites[name].set_threshold(self._calibration.threshold(self._rule, name, share))

    def _output(self) -> Tensor:
        output = self._block(*self._args, **self._kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden[:, self._calibration.skip :].float()


def _at(path: Trajectory, name: str, level: float) -> float:
    """Sparsity of a site when its block is at a level, between the steps in proportion."""
    position = level / STEP
    index = int(position)
    if index < len(path) - 1:
        low, high, part = path[index][name], path[index + 1][name], position - index
    else:
        last = STEP * (len(path) - 1)
        low, high, part = path[-1][name], 1.0, (level - last) / (1.0 - last)
    return low + (high - low) * part
