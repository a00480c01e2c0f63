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


@bench.command()
def overhead(
    core: Annotated[int, typer.Option(help="Which of the usable cores to pin the thread to; -1 is the last.")] = -1,
    seconds: Annotated[float, typer.Option(help="Time for the whole measurement.")] = 5.0,
) -> None:
    """What a call of an operator costs on the CPU beside its kernel."""
    from zigpass.tools.bench_overhead import run

    run(core, seconds)


@bench.command()
def onnx(
    core: Annotated[int, typer.Option(help="Which of the usable cores to pin the thread to; -1 is the last.")] = -1,
    rounds: Annotated[int, typer.Option(help="Turns of each candidate, of which each counts three calls.")] = 40,
    small: Annotated[bool, typer.Option("--small", help="A small MLP, a quick check.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON to write; default: in tools/results.")] = None,
) -> None:
    """An exported MLP in onnxruntime: native zigpass ops against stock MatMulNBits."""
    from zigpass.tools.bench_onnx import run

    run(core, rounds, small, out)


@bench.command()
def decode(
    models: Annotated[list[str] | None, typer.Argument(help="Model shapes; default: all.")] = None,
    sparsity: Annotated[list[float], typer.Option(help="Target sparsities.")] = [0.0, 0.25, 0.5],  # noqa: B006
    variant: Annotated[
        list[str], typer.Option(help="Dense variants to time beside them: bf16, tinygemm, 'zigpass dense'.")
    ] = ["bf16", "tinygemm", "zigpass dense"],  # noqa: B006
    attention: Annotated[str, typer.Option(help="Hugging Face's attention: sdpa, eager or flex_attention.")] = "sdpa",
    profile: Annotated[bool, typer.Option(help="Microseconds by part, from a profiler trace.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON to write; default: in tools/results.")] = None,
) -> None:
    """Whole decode steps of real model shapes on a GPU, random weights."""
    from zigpass.tools.bench_decode import run
    from zigpass.tools.decode_models import SHAPES

    run(models or list(SHAPES), sparsity, variant, attention, profile, out)


@bench.command()
def gemv(
    shapes: Annotated[list[str] | None, typer.Argument(help="NxK; default: projections of 7B to 70B models.")] = None,
    axis: Annotated[list[str], typer.Option(help="Scale axes: in, out.")] = ["in", "out"],  # noqa: B006
    band: Annotated[list[int], typer.Option(help="Bands; 0 is one band of all rows.")] = [1024],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="JSON to write; default: gemv.json in tools/results.")] = None,
) -> None:
    """Single GEMVs on a GPU against tinygemm, cuBLAS bf16 and the limit that memory sets."""
    from zigpass.tools.bench_gemv import run_gemv

    run_gemv(shapes or [], axis, band, out)


@bench.command()
def mlp(
    names: Annotated[list[str] | None, typer.Argument(help="7B, 8B or 70B; default: all.")] = None,
    axis: Annotated[list[str], typer.Option(help="Scale axes: in, out.")] = ["in", "out"],  # noqa: B006
    band: Annotated[list[int], typer.Option(help="Bands; 0 is one band of all rows.")] = [1024],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="JSON to write; default: mlp.json in tools/results.")] = None,
) -> None:
    """Whole MLPs on a GPU against tinygemm and cuBLAS with a compiled silu * up, and the limit that memory sets."""
    from zigpass.tools.bench_gemv import run_mlp

    run_mlp(names or [], axis, band, out)


if __name__ == "__main__":
    bench()
