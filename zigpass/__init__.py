"""zigpass: activation sparsity for 4-bit LLM decoding, as a compiler pass for PyTorch."""

import os as _os

if __name__ != "zigpass":  # found again below `__path__`, such as by pkgutil.walk_packages: would be a second copy
    raise ImportError(f"{__name__} is zigpass under another name")

# In a checkout, `passes/`, `runtime/` and `tools/` lie beside this folder; this makes them importable as
# `zigpass.passes` and so on. Once installed they lie inside the package and this does nothing.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_root, "pyproject.toml")) and _os.path.isfile(
    _os.path.join(_root, "passes", "__init__.py")
):
    __path__.append(_root)
del _os, _root

from zigpass.runtime import ZigpassError  # noqa: E402  # after the path is set

from .calibrate import calibrate  # noqa: E402
from .config import ZigzagConfig  # noqa: E402
from .evaluate import Quality, evaluate  # noqa: E402
from .explain import explain  # noqa: E402
from .explain_report import Report  # noqa: E402
from .export_program import export_program  # noqa: E402
from .generate import Generation, generate  # noqa: E402
from .gguf_tokenizer import load_gguf_tokenizer  # noqa: E402
from .linear import ZigzagLinear, repack_  # noqa: E402
from .load_checkpoint import load_checkpoint  # noqa: E402
from .load_gguf import load_gguf  # noqa: E402
from .load_packed import from_pretrained  # noqa: E402
from .prepare import prepare, survey  # noqa: E402
from .quantize import quantize_  # noqa: E402
from .sampling import Sampling  # noqa: E402
from .save import save_pretrained  # noqa: E402
from .sites import Site, dense, find_sites  # noqa: E402
from .thresholds import Thresholds  # noqa: E402
from .watch import watch_sparsity  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Generation",
    "Quality",
    "Report",
    "Sampling",
    "Site",
    "Thresholds",
    "ZigpassError",
    "ZigzagConfig",
    "ZigzagLinear",
    "ZigzagPass",
    "calibrate",
    "dense",
    "evaluate",
    "explain",
    "export_onnx",
    "export_program",
    "find_sites",
    "from_pretrained",
    "generate",
    "import_onnx",
    "load_checkpoint",
    "load_gguf",
    "load_gguf_tokenizer",
    "prepare",
    "quantize_",
    "repack_",
    "save_pretrained",
    "survey",
    "watch_sparsity",
]


def __getattr__(name: str) -> object:
    """Imports at the first use: `ZigzagPass` brings in Inductor, the others onnx or onnxruntime."""
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    if name == "ort":
        return importlib.import_module(".ort", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_LAZY = {"ZigzagPass": ".inductor_pass", "export_onnx": ".onnx.export", "import_onnx": ".onnx.import_onnx"}
