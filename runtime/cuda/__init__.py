"""CUDA implementations of the zigpass ops: one file an idea, from source text to launch.

`compiler` turns `runtime/kernels/*.cu` into cubins, `specialization` says which macros a launch needs, `tables` which
launch parameters it takes, `plan` joins them for a shape, `launch` sends it to the stream, `operators` are the ops.
"""

from .operators import gated_mlp, linear, qkv

__all__ = ["gated_mlp", "linear", "qkv"]
