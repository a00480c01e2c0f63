"""zigpass: activation sparsity for 4-bit LLM decoding, as a compiler pass for PyTorch."""

import os as _os

# In a checkout, `passes/`, `runtime/` and `tools/` lie beside this folder; this makes them importable as
# `zigpass.passes` and so on. Once installed they lie inside the package and this does nothing.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_root, "pyproject.toml")) and _os.path.isfile(
    _os.path.join(_root, "passes", "__init__.py")
):
    __path__.append(_root)
del _os, _root
