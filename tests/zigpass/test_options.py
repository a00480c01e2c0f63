import pytest
import torch

from tests.models import SwiGlu
from tests.passes.graphs import one_row
from zigpass.backend_error import BackendError
from zigpass.options import BackendOptions, read_options
from zigpass.runtime import ZigpassError


def test_own_keys_and_inductors_are_told_apart():
    options = read_options(None, {"inner": "inductor", "require-match": True, "triton.cudagraphs": True})
    assert options == BackendOptions(inner="inductor", require_match=True, inductor={"triton.cudagraphs": True})


def test_mode_may_come_either_way():
    assert read_options("reduce-overhead").mode == "reduce-overhead"
    assert read_options(None, {"mode": "reduce-overhead"}).mode == "reduce-overhead"


def test_defaults():
    assert read_options() == BackendOptions()
    assert read_options().skip == frozenset()


def test_switched_off_passes():
    assert read_options(None, {"passes": {"fuse_qkv": False, "fuse_gated_mlp": True}}).skip == {"fuse_qkv"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"require_macth": True}, r"unknown option 'require_macth' \(did you mean 'require_match'\?\)"),
        ({"max_autotun": True}, r"unknown option 'max_autotun' \(did you mean 'max_autotune'\?\)"),
        ({"qqqqqqqq": 1}, "unknown option 'qqqqqqqq'; backend zigpass has inner, mode, require_match, passes"),
        ({"inner": "nvfuser"}, r"option inner must be one of \('inductor', 'eager'\), got 'nvfuser'"),
        ({"mode": "reduce_overhead"}, r"got 'reduce_overhead' \(did you mean 'reduce-overhead'\?\)"),
        ({"require_match": "yes"}, "option require_match must be True or False, got 'yes'"),
        ({"passes": ["fuse_qkv"]}, r"option passes must be a dict such as {\"fuse_qkv\": False}"),
        ({"passes": {"fuse_qvk": False}}, r"'fuse_qvk' is not one of .* \(did you mean 'fuse_qkv'\?\)"),
        ({"passes": {"verify_graph": False}}, "'verify_graph' is not one of"),
        ({"passes": {"fuse_qkv": 0}}, "option passes: fuse_qkv must be True or False, got 0"),
        ({"inner": "eager", "max_autotune": True}, 'max_autotune configure Inductor, which inner="eager" does not'),
        ({"inner": "eager", "mode": "reduce-overhead"}, 'mode configure Inductor, which inner="eager" does not use'),
    ],
)
def test_bad_options_name_the_way_out(options, message):
    with pytest.raises(BackendError, match=message):
        read_options(None, options)


def test_error_reaches_the_user_of_torch_compile_as_it_is():
    torch._dynamo.reset()
    with pytest.raises(ZigpassError, match=r"^unknown option 'require_macth'"):
        torch.compile(SwiGlu(), backend="zigpass", options={"require_macth": True})(one_row())
