"""The packages that export and import need."""

from __future__ import annotations

import importlib.util


def require_onnx() -> None:
    """
    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} not installed; pip install 'zigpass[onnx]'")
