import pytest
import torch
from torch import nn

from tests.models import tiny_llama
from zigpass.blocks import BlockRecord, block_name


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.stages = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4)])])


def test_a_block_is_the_outermost_list_member():
    assert block_name(tiny_llama(), "model.layers.1.mlp.up_proj") == "model.layers.1"
    assert block_name(Nested(), "stages.0.0") == "stages.0"
    assert block_name(Nested(), "stem") is None


class Chain(nn.Module):
    def __init__(self, repeat=1, pair=False):
        super().__init__()
        self.layers = nn.ModuleList([Step(pair) for _ in range(3)])
        self.repeat = repeat

    def forward(self, x):
        for _ in range(self.repeat):
            for layer in self.layers:
                x = layer(x)
                x = x[0] if isinstance(x, tuple) else x
        return x


class Step(nn.Module):
    def __init__(self, pair):
        super().__init__()
        self.pair, self.calls, self.offset = pair, 0, 1.0

    def forward(self, x):
        self.calls += 1
        y = x * 2 + self.offset
        return (y, None) if self.pair else y


@pytest.mark.parametrize("pair", [False, True])
def test_blocks_before_the_start_are_not_run_again(pair):
    model = Chain(pair=pair)
    record = BlockRecord(model, ["layers.0", "layers.1", "layers.2"])
    x = torch.ones(2)
    with record.recording():
        first = model(x)
    model.layers[1].offset = 5.0
    expected = model(x)
    calls = [layer.calls for layer in model.layers]
    with record.replaying_before("layers.1"):
        replayed = model(x)
    assert torch.equal(replayed, expected)
    assert not torch.equal(replayed, first)
    assert [layer.calls for layer in model.layers] == [calls[0], calls[1] + 1, calls[2] + 1]
    assert torch.equal(model(x), expected)  # the replay is over


def test_blocks_that_run_twice_are_not_replayed():
    model = Chain(repeat=2)
    record = BlockRecord(model, ["layers.0", "layers.1"])
    with record.recording():
        expected = model(torch.ones(2))
    calls = model.layers[0].calls
    with record.replaying_before("layers.1"):
        assert torch.equal(model(torch.ones(2)), expected)
    assert model.layers[0].calls == calls + 2


def test_the_original_forward_is_back_after_an_error():
    model = Chain()
    record = BlockRecord(model, ["layers.0", "layers.1"])
    with record.recording():
        model(torch.ones(2))
    with pytest.raises(ZeroDivisionError), record.replaying_before("layers.1"):
        raise ZeroDivisionError
    assert "forward" not in vars(model.layers[0])
