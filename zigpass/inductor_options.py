"""What the backend asks of Inductor for a graph of one token, where what lies between the GEMVs counts.

On a GPU, `combo_kernels` puts what is independent into one kernel: the rotary embedding of queries and keys, both
writes into the cache and the mask. `triton.enable_pdl` lets Inductor's kernels start, on GPUs from sm_90 on, before the
kernel in front has ended, as zigpass's own do. Measured on a step of eight layers of Llama-3-8B's shape at 50 %, H100,
torch 2.11, microseconds: neither 684, the first 657, both 630. The first rounds some values at another place (logits of
24 tokens differ by 0.3 % of their norm, as bfloat16 does, and every most likely token is the same); the second changes
no bit.

Both chains of early launches fit together: a kernel of Inductor behind one of zigpass waits before it touches memory
(Inductor does so behind every operator that is not its own), and a kernel of zigpass waits before it reads `x`.

On a CPU, `size_asserts` are off: Inductor's code otherwise compares the sizes and strides of every input and of what
every operator returned, about 1,100 times a step of SmolLM2-135M, which is 0.6 to 0.7 ms of 13.3 to 13.9 (Zen 4, one
thread). Dynamo's guards have seen the inputs by then, and zigpass's operators make their results to measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from torch import Tensor

from zigpass.passes import Context

DECODE_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "cuda": {"combo_kernels": True, "triton.enable_pdl": True},
    "cpu": {"size_asserts": False},
}
"""By the type of the device."""


def inductor_keys() -> tuple[str, ...]:
    """Every key that the installed Inductor takes."""
    from torch._inductor import config

    return tuple(config.get_config_copy())


def decode_options(contexts: Iterable[Context], example_inputs: Sequence[Any]) -> dict[str, Any]:
    """Those of `DECODE_OPTIONS` that the installed Inductor has, for a graph with linears of one row; else nothing."""
    if not any(context.matches for context in contexts):
        return {}
    on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in example_inputs)
    known = inductor_keys()
    return {key: value for key, value in DECODE_OPTIONS["cuda" if on_gpu else "cpu"].items() if key in known}
