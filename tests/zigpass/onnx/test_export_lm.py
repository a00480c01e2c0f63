"""Exported causal language models, with their key-value cache."""

import json

import numpy as np
import onnx
import pytest
import torch
from transformers import DynamicCache

import zigpass
from tests.models import quantized_tiny_llama, random_tokens
from tests.onnx_nodes import session
from zigpass.runtime import ZigpassError
from zigpass.sites import find_sites

HEADS, HEAD_DIM, LAYERS = 2, 16, 2


class Tokenizer:
    """Stands for a tokenizer; only its files matter."""

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture(scope="module")
def model():
    return quantized_tiny_llama(0.1)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "model.onnx"
    return zigpass.export_onnx(model, path, tokenizer=Tokenizer(), progress=False), path


def both_logits(model, running, batch, length, past):
    """Logits of torch and of onnxruntime for random tokens after a random cache."""
    generator = torch.Generator().manual_seed(past)
    ids = torch.randint(0, 97, (batch, length), generator=generator)
    cache, tensors = DynamicCache(), {}
    for layer in range(LAYERS):
        shape = (batch, HEADS, past, HEAD_DIM)
        keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
        tensors |= {f"past_key_values.{layer}.key": keys, f"past_key_values.{layer}.value": values}
        if past:
            cache.update(keys, values, layer)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones(batch, past + length, dtype=torch.int64),
        "position_ids": torch.arange(past, past + length).repeat(batch, 1),
    }
    with torch.no_grad():
        want = model(**inputs, past_key_values=cache, use_cache=True).logits
    feed = {name: tensor.numpy() for name, tensor in {**inputs, **tensors}.items()}
    return want, torch.from_numpy(running.run(["logits"], feed)[0])


@pytest.mark.parametrize(("batch", "length", "past"), [(1, 1, 7), (1, 1, 0), (1, 4, 0), (2, 3, 5), (3, 1, 2)])
def test_logits_are_those_of_torch(model, exported, batch, length, past):
    want, got = both_logits(model, session(str(exported[1])), batch, length, past)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_one_token_is_sparse_and_several_are_dense(model, exported):
    running = session(str(exported[1]))
    with zigpass.dense(model):
        dense_one, one = both_logits(model, running, 1, 1, 7)
        dense_many, many = both_logits(model, running, 1, 4, 7)
    assert (dense_one - one).abs().max() > 1e-3
    torch.testing.assert_close(many, dense_many, rtol=1e-4, atol=1e-5)


def test_greedy_tokens_are_those_of_torch(model, exported):
    running = session(str(exported[1]))
    prompt = random_tokens(5)[None]
    want = zigpass.generate(model, prompt, max_new_tokens=12).tokens.tolist()
    names = [value.name for value in running.get_inputs() if value.name.startswith("past")]
    past = {name: np.zeros((1, HEADS, 0, HEAD_DIM), np.float32) for name in names}
    ids, seen, got = prompt.numpy(), 0, []
    while len(got) < len(want):
        count = ids.shape[1]
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones((1, seen + count), np.int64),
            "position_ids": np.arange(seen, seen + count, dtype=np.int64)[None],
        }
        logits, *present = running.run(None, {**feed, **past})
        past = dict(zip(names, present, strict=True))
        seen += count
        ids = logits[:, -1:].argmax(-1)
        got.append(ids.item())
    assert got == want


def test_names_and_dimensions_are_those_of_genai(exported):
    graph = onnx.load(exported[1]).graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_key_values.1.value"] == ["batch_size", HEADS, "past_sequence_length", HEAD_DIM]
    assert shapes["present.0.key"] == ["batch_size", HEADS, "past_sequence_length + sequence_length", HEAD_DIM]
    assert shapes["logits"] == ["batch_size", "sequence_length", 97]
    assert "/model/layers.1/mlp/GatedMlp" in [node.name for node in graph.node]


def test_companion_files(exported):
    report, path = exported
    assert {each.name for each in report.files} == {"model.onnx", "genai_config.json", "tokenizer.json"}
    config = json.loads((path.parent / "genai_config.json").read_text())["model"]
    assert config["type"] == "llama"
    assert config["decoder"]["filename"] == "model.onnx"
    assert config["decoder"]["head_size"] == HEAD_DIM
    assert config["decoder"]["num_key_value_heads"] == HEADS
    assert config["decoder"]["inputs"]["past_key_names"] == "past_key_values.%d.key"


def test_the_file_says_what_it_is_and_not_where_it_was_made(exported):
    content = exported[1].read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".py", b"/home", str(exported[1].parent).encode()):
        assert trace not in content
    model = onnx.load(exported[1])
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["zigpass.version"] == zigpass.__version__
    assert metadata["zigpass.layout_version"] == "1"
    assert "origin" in json.loads(metadata["zigpass.thresholds"])
    assert model.producer_name == "zigpass"
    (mlp, *_) = [node for node in model.graph.node if node.op_type.startswith("GatedMlp")]
    layouts = {each.name: each.s.decode() for each in mlp.attribute if each.name.endswith("layout")}
    assert layouts["down_layout"] == "zigzag1:4bit:64x96:in32:sub_int:band128"


def test_given_thresholds_are_in_the_file_and_the_model_keeps_its_own(model, tmp_path):
    tokens = random_tokens(600)
    thresholds = zigpass.calibrate(
        quantized_tiny_llama(), tokens, 0.4, allocation="uniform", window=64, num_windows=4, progress=False
    )
    report = zigpass.export_onnx(model, tmp_path / "model.onnx", thresholds=thresholds, progress=False)
    assert all(site.threshold.tolist() == [pytest.approx(0.1)] for site in find_sites(model).values())
    loaded = onnx.load(tmp_path / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}
    name = "model.layers.1.mlp.mlp_mid"
    np.testing.assert_array_equal(tensors[f"{name}.threshold"], thresholds.sites[name].threshold.numpy())
    origin = json.loads({entry.key: entry.value for entry in loaded.metadata_props}["zigpass.thresholds"])
    assert origin["target_sparsity"] == 0.4
    assert origin["text_hash"] == thresholds.text_hash
    assert report.num_sites == len(thresholds.sites)


def test_thresholds_of_another_model_are_refused(tmp_path):
    thresholds = zigpass.calibrate(
        quantized_tiny_llama(), random_tokens(600), 0.4, allocation="uniform", window=64, num_windows=4, progress=False
    )
    with pytest.raises(ZigpassError, match="do not fit the model"):
        zigpass.export_onnx(quantized_tiny_llama(layers=1), tmp_path / "model.onnx", thresholds=thresholds)
    assert list(tmp_path.iterdir()) == []
