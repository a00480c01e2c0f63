import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models import quantized_tiny_llama, tiny_llama
from zigpass.config import ZigzagConfig
from zigpass.explain import explain
from zigpass.linear import find_linears
from zigpass.load_packed import from_pretrained
from zigpass.prepare import prepare
from zigpass.quantize import quantize_
from zigpass.replace import replace_module
from zigpass.runtime import ZigpassError
from zigpass.save import save_pretrained
from zigpass.sites import find_sites
from zigpass.tools.quantized_modules import GptqLinear

IDS = torch.arange(9)[None]


def sparse_llama(**config):
    model = quantized_tiny_llama(**config)
    for index, site in enumerate(find_sites(model).values()):
        site.set_threshold(0.01 * index if index % 2 else torch.rand(site.features) * 0.1)
    return model


def decode(model):
    """Logits of one row, where thresholds count, and of several."""
    with torch.no_grad():
        return model(IDS[:, :1]).logits, model(IDS).logits


def assert_same_logits(actual, expected):
    assert all(torch.equal(a, b) for a, b in zip(decode(actual), decode(expected), strict=True))


@pytest.fixture
def saved(tmp_path):
    save_pretrained(sparse_llama(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_gives_equal_bits(tmp_path, tied):
    model = sparse_llama(tie_word_embeddings=tied)
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert_same_logits(again, model)
    assert not again.training
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_a_model_that_was_cast_comes_back_as_it_was(tmp_path):
    model = sparse_llama().to(torch.bfloat16)  # casts the rotary frequencies too, which are computed, not saved
    save_pretrained(model, tmp_path)
    assert_same_logits(from_pretrained(tmp_path), model)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_column_scales_8_bits_and_act_order_come_back(tmp_path):
    overrides = {"*up_proj": ZigzagConfig(bits=8), "*.0.mlp.down_proj": ZigzagConfig(scale_axis="out")}
    model = quantize_(tiny_llama(), ZigzagConfig(group_size=32), overrides=overrides, progress=False)
    replace_module(model, "model.layers.1.self_attn.o_proj", GptqLinear(64, 64, act_order=True, bias=True))
    prepare(model, progress=False)
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert_same_logits(again, model)
    assert again.model.layers[1].self_attn.o_proj.layout.permuted


def test_thresholds_that_linears_share_are_stored_once_and_shared_again(saved):
    names = load_file(saved / "model.safetensors").keys()
    again = from_pretrained(saved)
    assert sum("zigpass.site." in name for name in names) == len(find_sites(again)) == 2 * 4
    mlp = again.model.layers[0].mlp
    assert mlp.gate_proj.site is mlp.up_proj.site


@pytest.mark.parametrize("band", [128, None])
def test_the_band_is_changed_when_asked(saved, band):
    model = sparse_llama(intermediate_size=300)
    save_pretrained(model, saved)
    again = from_pretrained(saved, band=band)
    bands = {linear.layout.band for _, linear in find_linears(again)}
    assert bands == ({128} if band else {128, 384})
    torch.testing.assert_close(decode(again)[1], decode(model)[1])


def test_the_configuration_says_how_it_is_stored(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "zigpass", "version": 1, "layout_version": 1}
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (saved / "generation_config.json").is_file()


def test_where_it_was_quantized_before_is_not_kept(tmp_path):
    model = quantized_tiny_llama()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "zigpass"
    assert model.config.quantization_config["quant_method"] == "gptq"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 4), "Linear is not a transformers model"),
        (tiny_llama(), "LlamaForCausalLM has no packed linears"),
    ],
)
def test_models_that_cannot_be_saved(tmp_path, model, message):
    with pytest.raises(ZigpassError, match=message):
        save_pretrained(model, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ZigpassError, match=r"file/below: cannot write the model"):
        save_pretrained(quantized_tiny_llama(), tmp_path / "file" / "below")


def test_tensors_without_data_are_named(tmp_path):
    model = quantized_tiny_llama()
    model.model.norm.to("meta")
    with pytest.raises(ZigpassError, match=r"model.norm.weight: has no data \(device meta\)"):
        save_pretrained(model, tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 300, -100])
def test_a_truncated_file_is_named(saved, kept):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ZigpassError, match=r"model.safetensors: truncated or not a safetensors file"):
        from_pretrained(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ZigpassError, match=rf"{name}: no such file"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method is 'gptq', not 'zigpass'"),
        ({"quantization_config": {}}, "quant_method is None"),
        ({"architectures": ["OsModel"]}, "has no model class 'OsModel'"),
        ({"architectures": ["AutoConfig"]}, "has no model class 'AutoConfig'"),
        ({"model_type": "nothing"}, "not the configuration of a transformers model"),
        ({"intermediate_size": 128}, r"model.layers.0.mlp.gate_proj: the file has 96 x 64, the model 128 x 64"),
        ({"num_hidden_layers": 1}, "model.layers.1.mlp.gate_proj: LlamaForCausalLM has no such module"),
        ({"num_hidden_layers": 3}, "these tensors of the model are not in the file:\n  - model.layers.2."),
        ({"vocab_size": 98}, r"lm_head.weight has shape \(97, 64\), the model needs \(98, 64\)"),
        ({"attention_bias": True}, None),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(saved, change, message):
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if message is None:  # packed linears bring their own biases, or none
        from_pretrained(saved)
        return
    with pytest.raises(ZigpassError, match=message):
        from_pretrained(saved)


def rewrite(folder, edit):
    """Change the tensors and the description of a saved file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["zigpass"])
    edit(tensors, document)
    save_file(tensors, path, metadata={"zigpass": json.dumps(document)})


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors, doc: tensors.pop(f"{UP}.scale"), f"{UP}.scale: missing in the file"),
        (lambda tensors, doc: tensors.update(stray=torch.ones(1)), "stray: LlamaForCausalLM has no such tensor"),
        (
            lambda tensors, doc: tensors.update({f"{UP}.codes": tensors[f"{UP}.codes"][:9].clone()}),
            rf"model.safetensors: {UP}: codes of zigzag1.* has shape \(9,\)",
        ),
        (
            lambda tensors, doc: tensors.update({f"{UP}.scale": tensors[f"{UP}.scale"].double()}),
            f"{UP}: scale has dtype torch.float64",
        ),
        (lambda tensors, doc: doc.update(version=2), "file version 2, this zigpass reads version 1"),
        (lambda tensors, doc: doc.pop("linears"), "its description of the packed model is damaged"),
        (
            lambda tensors, doc: doc["linears"][UP].update(layout="zigzag9:4bit:96x64:in32:sub_int:band128"),
            f"{UP}: 'zigzag9:.*' has layout version 9",
        ),
        (lambda tensors, doc: doc["linears"][UP].update(site=99), f"{UP}: reads site 99 of 8"),
        (lambda tensors, doc: doc["sites"][0].update(kind="elsewhere"), "site 0: unknown kind 'elsewhere'"),
        (lambda tensors, doc: doc["linears"].update({"nowhere": doc["linears"].pop(UP)}), "nowhere: LlamaForCausalLM"),
    ],
)
def test_a_damaged_file_is_named(saved, edit, message):
    rewrite(saved, edit)
    with pytest.raises(ZigpassError, match=message):
        from_pretrained(saved)


def test_a_damaged_permutation_is_caught(tmp_path):
    model = quantized_tiny_llama()
    name = "model.layers.1.self_attn.o_proj"
    replace_module(model, name, GptqLinear(64, 64, act_order=True))
    save_pretrained(prepare(model, progress=False), tmp_path)
    rewrite(tmp_path, lambda tensors, doc: tensors[f"{name}.perm"].fill_(1 << 30))
    with pytest.raises(ZigpassError, match=rf"{name}: perm does not hold every input"):
        from_pretrained(tmp_path)


def test_a_foreign_safetensors_file_is_named(saved):
    save_file({"a": torch.ones(1)}, saved / "model.safetensors")
    with pytest.raises(ZigpassError, match=r"not of a model saved by zigpass.save_pretrained"):
        from_pretrained(saved)


@pytest.fixture
def sharded(tmp_path):
    save_pretrained(sparse_llama(), tmp_path, max_shard_size=40_000)
    return tmp_path


def shards_of(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_shards_come_back_as_one_model(sharded):
    names = shards_of(sharded)
    assert names == [f"model-{index:05d}-of-{len(names):05d}.safetensors" for index in range(1, len(names) + 1)]
    assert len(names) >= 3
    assert all((sharded / name).stat().st_size < 50_000 for name in names)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for name in names for tensor in load_file(sharded / name).values()
    )
    assert_same_logits(from_pretrained(sharded), sparse_llama())


def test_sizes_as_text_and_the_default_is_one_file(tmp_path):
    model = sparse_llama()
    save_pretrained(model, tmp_path, max_shard_size="40KB")
    assert len(shards_of(tmp_path)) >= 3
    save_pretrained(model, tmp_path)  # what was saved before is not left beside it
    assert shards_of(tmp_path) == ["model.safetensors"]
    assert not (tmp_path / "model.safetensors.index.json").exists()
    save_pretrained(model, tmp_path, max_shard_size="50KB")
    assert "model.safetensors" not in shards_of(tmp_path)
    assert_same_logits(from_pretrained(tmp_path), model)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("size", [0, -5, "large", "5 bytes"])
def test_a_size_that_makes_no_sense(tmp_path, size):
    with pytest.raises(ZigpassError, match="max_shard_size"):
        save_pretrained(sparse_llama(), tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_every_shard_that_is_missing_or_cut_short_is_named(sharded):
    first, second, *_ = shards_of(sharded)
    (sharded / first).unlink()
    (sharded / second).write_bytes((sharded / second).read_bytes()[:-100])
    with pytest.raises(ZigpassError) as caught:
        from_pretrained(sharded)
    message = str(caught.value)
    assert "index.json: these of its " in message
    assert f"{first}: no such file" in message
    assert f"{second}: truncated or not a safetensors file" in message


def test_a_shard_of_another_model_is_named(sharded):
    first, second, *_ = shards_of(sharded)
    (sharded / second).write_bytes((sharded / first).read_bytes())
    with pytest.raises(ZigpassError, match=rf"shards lack tensors that the index says are in them:\n  - {second}: "):
        from_pretrained(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ZigpassError, match=r"index.json: not an index of safetensors files"):
        from_pretrained(sharded)


def test_the_sparsity_that_thresholds_were_chosen_for_comes_back(tmp_path):
    model = quantized_tiny_llama()
    for index, site in enumerate(find_sites(model).values()):
        site.set_threshold(0.1, target_sparsity=0.25 + 0.05 * index)
    by_hand = next(iter(find_sites(model).values()))
    by_hand.set_threshold(0.2)  # nobody knows what share that is
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert [site.target_sparsity for site in find_sites(again).values()] == [
        site.target_sparsity for site in find_sites(model).values()
    ]
    by_hand.set_threshold(0.1, target_sparsity=0.5)
    save_pretrained(model, tmp_path)
    one = torch.tensor([[5]])
    report = explain(from_pretrained(tmp_path), one)
    assert report.active_bytes == explain(model, one).active_bytes
    assert report.bound > 1.1
