"""The `zigpass` command: a thin front of the scripts in `tools/`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import typer

from zigpass.runtime import ZigpassError


def app() -> typer.Typer:
    """The command with its subcommands; each is the function of the same name in `zigpass.tools`."""
    from zigpass.tools.bench import bench
    from zigpass.tools.calibrate import calibrate
    from zigpass.tools.demo import demo
    from zigpass.tools.env import env
    from zigpass.tools.evaluate import evaluate
    from zigpass.tools.export import export
    from zigpass.tools.generate import generate
    from zigpass.tools.import_onnx import import_onnx
    from zigpass.tools.inspect_kernel import inspect_kernel
    from zigpass.tools.inspect_passes import inspect
    from zigpass.tools.make_repro import make_repro
    from zigpass.tools.plot import plot
    from zigpass.tools.tune import tune

    application = _application(help="Activation sparsity for 4-bit LLM decoding, as a compiler pass for PyTorch.")
    application.command()(demo)
    application.command()(env)
    application.command()(calibrate)
    application.command()(evaluate)
    application.command()(tune)
    application.command()(inspect)
    application.command()(inspect_kernel)
    application.command()(make_repro)
    application.command()(generate)
    application.command()(export)
    application.command()(import_onnx)
    application.add_typer(bench, name="bench")
    application.add_typer(plot, name="plot")
    return application


def main() -> None:
    """Entry point of the `zigpass` command."""
    _run(app())


def run_script(command: Callable[..., None]) -> None:
    """Run one function of `tools/` as a script of its own."""
    application = _application()
    application.command()(command)
    _run(application)


def _application(**settings: Any) -> typer.Typer:
    return typer.Typer(no_args_is_help=bool(settings), add_completion=False, pretty_exceptions_enable=False, **settings)


def _run(application: typer.Typer) -> None:
    """An error of the user's input is one line, not a traceback."""
    logger = logging.getLogger("zigpass")  # not the root logger: other libraries keep their settings
    if not logger.handlers:  # TORCH_LOGS has given it one already
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    try:
        application()
    except ZigpassError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
