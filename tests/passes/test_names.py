import pytest

from zigpass.passes import clean_path
from zigpass.passes.names import joined


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("L['args'][0].model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("L['self'].model.layers.0.mlp", "model.layers.0.mlp"),
        ("L['model']._modules['layers']._modules['3'].down_proj", "layers.3.down_proj"),
        ("L['fn'].__closure__[0].cell_contents.up_proj", "up_proj"),
        ("G['net'].layers[2].up_proj", "layers.2.up_proj"),
        ("L['self']", ""),
        ("model.layers.0", "model.layers.0"),
    ],
)
def test_clean_path(path, name):
    assert clean_path(path) == name


def test_joined_says_the_common_beginning_once():
    assert joined(["a.b.q", "a.b.k"]) == "a.b.(q, k)"
    assert joined(["a.b.q", "a.c.k"]) == "a.b.q, a.c.k"
    assert joined(["q", "k"]) == "q, k"
    assert joined(["a.q", "a.q"]) == "a.q"
