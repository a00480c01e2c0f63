"""`register` and `session`: let onnxruntime run zigpass nodes with the kernels of zigpass."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal

from zigpass.backend import ZigpassWarning
from zigpass.runtime import ZigpassError

from .extensions import extensions_library, has_extensions, redirected

logger = logging.getLogger("zigpass.ort")

Route = Literal["compiler", "extensions", "none"]


def register(session_options: Any, route: Route | None = None) -> Route:
    """Register the native zigpass ops with the options of an onnxruntime session.

    They take the place of the function bodies in the file: one row reads only the weight columns of active inputs;
    more rows run dense. They use as many threads as torch (`torch.set_num_threads`). Weights are relaid when a node
    first runs.

    Args:
        session_options: `onnxruntime.SessionOptions`.
        route: None for the best one there is. "compiler" builds, once, a small library with the machine's C compiler.
            "extensions" needs no compiler but the package onnxruntime-extensions; its ops live in another domain, so
            the model is to be opened with `session`.

    Returns:
        The route that was taken; "none", after one warning, when there is neither: the file runs all the same, on the
        function bodies, and reads all weights.

    Raises:
        ZigpassError: the route that was asked for is not there.
    """
    failures = []
    for each in ("compiler", "extensions") if route is None else (route,):
        try:
            library = _library(each)
        except ZigpassError as error:
            if route is not None:
                raise
            failures.append(str(error))
            continue
        session_options.register_custom_ops_library(str(library))
        # The kernels have threads of their own; onnxruntime's would otherwise spin beside them between two nodes.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        logger.info("zigpass ops registered by way of %s", each)
        return each
    warnings.warn(
        f"zigpass: no native ops for onnxruntime: {'; '.join(failures)}. The model runs on its function bodies and"
        " reads all weights; install a C compiler, or onnxruntime-extensions",
        ZigpassWarning,
        stacklevel=2,
    )
    return "none"


def session(
    path: str | os.PathLike[str], session_options: Any = None, route: Route | None = None, **arguments: Any
) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU that runs the zigpass nodes of a file natively, by either route.

    Args:
        path: what `zigpass.export_onnx` wrote.
        session_options: to add the ops to; None for new ones.
        route: as in `register`.
        arguments: further ones of `onnxruntime.InferenceSession`.

    Raises:
        ZigpassError: the file is missing, or the route that was asked for.
    """
    import onnxruntime

    path = Path(path)
    if not path.is_file():
        raise ZigpassError(f"{path}: no such file")
    options = onnxruntime.SessionOptions() if session_options is None else session_options
    arguments.setdefault("providers", ["CPUExecutionProvider"])
    if register(options, route) != "extensions":
        return onnxruntime.InferenceSession(str(path), options, **arguments)
    folder = str(path.resolve().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return onnxruntime.InferenceSession(redirected(path), options, **arguments)


def _library(route: str) -> str | Path:
    if route == "compiler":
        from .shim import shim_library  # compiles kernels

        return shim_library()
    if route != "extensions":
        raise ZigpassError(f'route must be "compiler" or "extensions", got {route!r}')
    if not has_extensions():
        raise ZigpassError("onnxruntime-extensions is not installed")
    return extensions_library()
