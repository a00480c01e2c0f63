"""Exports that cannot work: a sentence, and nothing left behind."""

import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import zigpass
from tests.models import SwiGlu, tiny_llama
from zigpass.onnx.files import staged
from zigpass.runtime import ZigpassError

X = (torch.randn(1, 64),)


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return zigpass.quantize_(nn.Sequential(SwiGlu()), zigpass.ZigzagConfig(group_size=32), progress=False)


@contextmanager
def largest_file(size):
    """Let no file grow beyond a size; to the program it is a disk that is full."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("opset", [18, 20, 26])
def test_unsupported_opset(mlp, tmp_path, opset):
    with pytest.raises(ZigpassError, match=f"opset {opset} is not supported: 21 .* to 25"):
        zigpass.export_onnx(mlp, tmp_path / "m.onnx", example_inputs=X, opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written(mlp, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ZigpassError, match=r"file/m.onnx: cannot be written"):
        zigpass.export_onnx(mlp, tmp_path / "file" / "m.onnx", example_inputs=X)


@pytest.mark.parametrize(("name", "reason"), [("", "is a folder"), ("model.pb", r"must end with \.onnx")])
def test_a_path_that_names_no_onnx_file(mlp, tmp_path, name, reason):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ZigpassError, match=reason):
        zigpass.export_onnx(mlp, tmp_path / (name or "folder.onnx"), example_inputs=X)


def test_a_disk_with_too_little_room_is_seen_before_any_work(mlp, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(ZigpassError, match="the disk has 0 MB left"):
        zigpass.export_onnx(mlp, tmp_path / "m.onnx", example_inputs=X)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("external", [True, False])
def test_a_disk_that_fills_up_midway_leaves_the_old_file(mlp, tmp_path, monkeypatch, external):
    if external:
        monkeypatch.setattr("zigpass.onnx.files.EXTERNAL_ABOVE", 1 << 10)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with largest_file(4096), pytest.raises(ZigpassError, match=r"m.onnx: cannot be written .*nothing was left there"):
        zigpass.export_onnx(mlp, path, example_inputs=X, progress=False)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write():
        with staged(tmp_path / "m.onnx") as folder:
            (folder / "m.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_packed_linears(tmp_path):
    with pytest.raises(ZigpassError, match=r"LlamaForCausalLM has no packed linears to export; call zigpass\.prepare"):
        zigpass.export_onnx(tiny_llama(), tmp_path / "m.onnx")


def test_a_model_whose_packed_linears_do_not_run(mlp, tmp_path):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = mlp

        def forward(self, x):
            return x + 1

    with pytest.raises(ZigpassError, match="no packed linear runs for these inputs"):
        zigpass.export_onnx(Unused(), tmp_path / "m.onnx", example_inputs=X)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_needs_example_inputs(mlp, tmp_path):
    with pytest.raises(ZigpassError, match="pass example_inputs"):
        zigpass.export_onnx(mlp, tmp_path / "m.onnx")


def test_everything_that_onnx_cannot_express_is_said_at_once(mlp, tmp_path):
    model = nn.Sequential(mlp, nn.LayerNorm(64)).to(torch.bfloat16)
    sites = list(zigpass.find_sites(model).values())
    sites[0].mask_rows = True
    sites[1].set_threshold(torch.tensor([10], dtype=torch.int32))
    with pytest.raises(ZigpassError) as raised:
        zigpass.export_onnx(model, tmp_path / "m.onnx", example_inputs=X)
    for part in ("bfloat16", "mask_rows is set on 1 sites", "read a fixed count of entries"):
        assert part in str(raised.value)


def test_a_module_that_cannot_be_traced(mlp, tmp_path):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = mlp

        def forward(self, x):
            raise RuntimeError("not today")

    with pytest.raises(ZigpassError, match=r"torch.export cannot trace it: not today"):
        zigpass.export_onnx(Breaks(), tmp_path / "m.onnx", example_inputs=X)
