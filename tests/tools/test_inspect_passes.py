"""`zigpass inspect` from the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tests.toys import build
from zigpass.cli import app
from zigpass.runtime import ZigpassError
from zigpass.tools.gguf_files import write_llama
from zigpass.tools.inspect_passes import calibrate_quickly

TOY = "tests.toys:build"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("zigpass.tools.inspect_passes.read_bandwidth", lambda device: 1e9)


def run(*arguments):
    torch._dynamo.reset()
    return CliRunner().invoke(app(), ["inspect", *arguments], catch_exceptions=False).stdout


def fails(*arguments):
    with pytest.raises(ZigpassError) as caught:
        run(*arguments)
    return str(caught.value)


def test_overview_has_passes_differences_and_refusals():
    shown = run(TOY, "--sparsity", "0.5")
    assert "1 gated_mlp, 1 qkv, 1 linear matched in 1 graph" in shown
    assert "this device reads 1.0 GB/s: at most " in shown
    (line,) = [line for line in shown.splitlines() if line.lstrip().startswith("3 ") or " fuse_gated_mlp " in line]
    assert line.split()[1:3] == ["fuse_gated_mlp", "1"]
    assert "+gated_mlp: f32[1, 1, 64] = zigpass.gated_mlp(" in shown
    assert "- leaky_relu of layers.1.gate_proj is not an activation gated_mlp knows" in shown


def test_one_pass_and_one_step():
    shown = run(TOY, "--pass", "fuse_qkv")
    assert "+++ graph 1 after fuse_qkv" in shown
    assert "fuse_gated_mlp" not in shown
    first = run(TOY, "--step", "1")
    assert "collect_linears" in first
    assert "fuse_qkv" not in first


def test_near_misses_stand_at_their_pass():
    assert "near miss: leaky_relu of layers.1.gate_proj" in run(TOY, "--pass", "fuse_gated_mlp")


def test_json_has_everything():
    data = json.loads(run(TOY, "--json", "-", "--sparsity", "0.5"))
    assert data["title"] == "tests.toys:build"
    assert [step["name"] for step in data["passes"]][:1] == ["collect_linears"]
    assert {row["kind"] for row in data["linears"]} == {"gated_mlp", "qkv", "linear"}
    assert [block["name"] for block in data["blocks"]] == ["outside of all blocks", "layers.0", "layers.1"]
    (match,) = data["blocks"][1]["regions"]
    assert match["kind"] == "gated_mlp"
    assert [line["region"] for line in data["blocks"][1]["before"]] == [0, 0, 0, 0, 0]
    assert [line["changed"] for line in data["blocks"][1]["after"]][:1] == [True]
    assert data["profiled_on"] == "the example call"
    assert {site["kind"] for site in data["sites"]} == {"mlp_in", "mlp_mid"}
    assert data["bound"]["dense_tokens_per_second"] < data["bound"]["sparse_tokens_per_second"]


def test_a_float_model_is_inspected_as_it_is_and_packed_when_asked():
    assert "not quantized: 2 linears" in run("tests.tools.test_inspect_passes:build_float")
    assert "2 linear matched" in run("tests.tools.test_inspect_passes:build_float", "--bits", "4", "--group-size", "32")


def build_float():
    torch._dynamo.reset()
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64)), (torch.ones(1, 64),)


def test_exported_program(tmp_path):
    model, args = build()
    torch.export.save(torch.export.export(model, args), tmp_path / "toy.pt2")
    shown = run(str(tmp_path / "toy.pt2"), "--sparsity", "0.5", "--html", str(tmp_path / "toy.html"))
    assert "1 gated_mlp, 1 qkv, 1 linear matched" in shown
    assert "leaky_relu" in (tmp_path / "toy.html").read_text()


def test_gguf_file_and_prompt_of_several_tokens(tmp_path):
    write_llama(tmp_path / "tiny.gguf")
    assert "1 gated_mlp, 1 qkv, 1 linear, 1 dense_linear" in run(str(tmp_path / "tiny.gguf"))
    assert "captured with more than one row" in run(str(tmp_path / "tiny.gguf"), "--tokens", "5")


def test_quick_calibration_sets_targets():
    from tests.models import quantized_tiny_llama
    from zigpass.sites import find_sites

    class Letters:
        def __call__(self, text, **settings):
            from types import SimpleNamespace

            return SimpleNamespace(input_ids=torch.tensor([[ord(letter) % 97 for letter in text[:2000]]]))

    model = quantized_tiny_llama()
    calibrate_quickly(model, 0.3, Letters())
    assert {round(site.target_sparsity, 2) for site in find_sites(model).values()} == {0.3}


def test_what_is_wrong_is_said(tmp_path):
    (tmp_path / "broken.pt2").write_text("no program")
    assert "no pass 'fuse'" in fails(TOY, "--pass", "fuse")
    assert "there is no step 99; the steps are 1 to" in fails(TOY, "--step", "99")
    assert "has no function 'nothing'; it has swiglu, leaky, packed_stack, build, build_alone" in fails(
        "tests.toys:nothing"
    )
    assert "has no function 'not_a_factory'" in fails("tests.toys:not_a_factory")
    assert "let the factory return (model, args)" in fails("tests.toys:build_alone")
    assert "cannot import no.such.module" in fails("no.such.module:build")
    assert "no such file" in fails(str(tmp_path / "none.pt2"))
    assert "not a program that torch.export.save wrote" in fails(str(tmp_path / "broken.pt2"))
    assert "--sparsity must be at least 0 and below 1" in fails(TOY, "--sparsity", "1")
    assert "--without takes" in fails(TOY, "--without", "verify_graph")
    assert "no model of this id in the local hub cache" in fails("nobody/nothing")
