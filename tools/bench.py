"""Benchmarks: `zigpass bench cpu` or `python tools/bench.py cpu`."""

from __future__ import annotations

import typer

from zigpass.tools.bench_cpu import cpu

bench = typer.Typer(no_args_is_help=True, help="Time the kernels against other libraries.")


@bench.callback()
def _several_commands() -> None:
    """Keeps `cpu` a subcommand while it is the only one."""


bench.command()(cpu)

if __name__ == "__main__":
    bench()
