"""Handing a model to lm-eval, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from torch import nn

from zigpass.observe import sparse_rows
from zigpass.runtime import ZigpassError


def run_tasks(model: nn.Module, tokenizer: Any, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Numbers of each task by metric, with the model's current thresholds.

    lm-eval scores whole texts in one go, so every position runs sparsely, the prompt too: a harder case than decoding
    after a dense prefill.

    Raises:
        ZigpassError: lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ZigpassError("tasks need lm-eval: pip install lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with sparse_rows(model):
        results = simple_evaluate(model=HFLM(pretrained=model, tokenizer=tokenizer), tasks=list(tasks))["results"]
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in results.items()
    }
