"""How fast llama.cpp decodes the same GGUF file, for the demo's table; needs `pip install llama-cpp-python`.

It runs in a process of its own (`python -m zigpass.tools.demo_llama`), because it brings its own OpenMP runtime, and
because a crash in there must not end the demo: with version 0.3.36 its AMX kernels crash in a virtual machine, so a
failed run is tried again without the kernels that lay weights out anew.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_SECONDS = 300


def has_llama_cpp() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def llama_cpp_speed(path: Path, prompt: Sequence[int], max_new_tokens: int, threads: int) -> float | None:
    """Tokens per second of greedy decoding after the first token, or None when llama.cpp cannot run the file."""
    for repack in (True, False):
        arguments = json.dumps([str(path), list(prompt), max_new_tokens, threads, repack])
        command = [sys.executable, "-m", "zigpass.tools.demo_llama", arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if result.returncode == 0:
            return float(result.stdout.split()[-1])
    return None


def decode(path: str, prompt: list[int], max_new_tokens: int, threads: int, repack: bool) -> float:
    """The measurement itself; `repack` allows kernels with their own weight layout."""
    from llama_cpp import Llama, llama_cpp

    if not repack:
        defaults = llama_cpp.llama_model_default_params

        def without_repacking() -> object:
            params = defaults()
            params.use_extra_bufts = False
            return params

        llama_cpp.llama_model_default_params = without_repacking
    model = Llama(
        path, n_ctx=len(prompt) + max_new_tokens, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0,
        verbose=False,
    )  # fmt: skip
    steps, start = -1, 0.0
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if steps < 0:
            start = time.perf_counter()  # the prompt and the first token are not counted
        steps += 1
        if steps + 1 == max_new_tokens or token == model.token_eos():
            break
    return steps / (time.perf_counter() - start)


if __name__ == "__main__":
    print(decode(*json.loads(sys.argv[1])))
