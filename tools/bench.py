"""Benchmarks: `zigpass bench cpu` or `python tools/bench.py cpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(no_args_is_help=True, help="Time the kernels against other libraries.")


@bench.callback()
def _several_commands() -> None:
    """Time the kernels against other libraries."""  # with a callback, one command is still a subcommand


@bench.command()
def cpu(
    threads: Annotated[int, typer.Option(help="Threads of every candidate; 1 is pinned to one core.")] = 1,
    core: Annotated[int, typer.Option(help="Which of the usable cores to pin one thread to; -1 is the last.")] = -1,
    seconds: Annotated[float, typer.Option(help="Time for each shape.")] = 8.0,
    megabytes: Annotated[int, typer.Option(help="Weights in rotation, for every candidate.")] = 200,
    activations: Annotated[str, typer.Option(help="float32 or int8, where the CPU has integer kernels.")] = "float32",
    small: Annotated[bool, typer.Option("--small", help="Only the small shapes, a quick check.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON to write; default: in tools/results.")] = None,
) -> None:
    """The CPU kernels against onnxruntime (when installed, with onnx) and torch's int4pack."""
    from zigpass.tools.bench_cpu import run  # here: other commands need neither Numba nor the peers

    run(threads, core, seconds, megabytes, activations, small, out)


if __name__ == "__main__":
    bench()
