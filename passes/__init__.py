"""Graph in, graph out: find quantized MLPs and projections in a torch.fx graph and fuse them.

The passes know torch.fx and the names of the `torch.ops.zigpass` operators; they know no kernels, no devices and no
models. `run` is the way in.
"""

from .activations import Activation, Product
from .clone import clone_graph_module, subgraphs
from .collect_linears import collect_linears
from .context import Context, Linear, Match, NearMiss, Observer, PackedLeaf, Packer
from .errors import PassError
from .manager import OPTIONAL_PASSES, PASSES, Pass, run
from .names import clean_path, module_name
from .op_table import argument, canonical, spelled
from .registry import register_activation, register_pass, registered_digest, unregister
from .values import fake_value
from .weight_leaves import WeightLeaf

__all__ = [
    "OPTIONAL_PASSES",
    "PASSES",
    "Activation",
    "Context",
    "Linear",
    "Match",
    "NearMiss",
    "Observer",
    "PackedLeaf",
    "Packer",
    "Pass",
    "PassError",
    "Product",
    "WeightLeaf",
    "argument",
    "canonical",
    "clean_path",
    "clone_graph_module",
    "collect_linears",
    "fake_value",
    "module_name",
    "register_activation",
    "register_pass",
    "registered_digest",
    "run",
    "spelled",
    "subgraphs",
    "unregister",
]
