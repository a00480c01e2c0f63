import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from zigpass.linear import find_linears
from zigpass.load_gguf import load_gguf
from zigpass.runtime import ZigpassError
from zigpass.tools.gguf_files import write_llama


def assert_same_logits_as_transformers(folder, model):
    """transformers dequantizes the whole file to float32, which is the reference."""
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_logits_equal_those_of_the_dequantized_checkpoint(tmp_path, kind):
    write_llama(tmp_path / "tiny.gguf", {"blk": GGMLQuantizationType[kind], "token_embd": GGMLQuantizationType.Q8_0})
    model = load_gguf(tmp_path / "tiny.gguf", progress=False)
    assert_same_logits_as_transformers(tmp_path, model)
    assert len(list(find_linears(model))) == 7 + 1
    assert model.lm_head.site is None
    assert not model.training


def test_a_mix_of_k_types_as_files_have_it(tmp_path):
    kinds = {"ffn_down": "Q6_K", "attn_v": "Q5_K", "attn_q": "Q2_K", "attn_k": "Q3_K", "token_embd": "Q6_K"}
    types = {part: GGMLQuantizationType[kind] for part, kind in {**kinds, "blk": "Q4_K"}.items()}
    write_llama(tmp_path / "tiny.gguf", types, hidden=256, middle=512)
    model = load_gguf(tmp_path / "tiny.gguf", progress=False)
    assert_same_logits_as_transformers(tmp_path, model)
    layer = model.model.layers[0]
    bits = {name.split(".")[-1]: linear.layout.bits for name, linear in find_linears(layer)}
    assert bits == {
        "q_proj": 2, "k_proj": 4, "v_proj": 8, "o_proj": 4, "gate_proj": 4, "up_proj": 4, "down_proj": 8,
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma3"])
def test_other_architectures(tmp_path, architecture):
    # transformers does not read the head size of a qwen3 file and takes 128.
    size = {"head": 128} if architecture == "qwen3" else {}
    write_llama(tmp_path / "tiny.gguf", architecture=architecture, **size)
    model = load_gguf(tmp_path / "tiny.gguf", progress=False)
    assert type(model).__name__.lower().startswith(architecture)
    assert_same_logits_as_transformers(tmp_path, model)
    assert (model.model.layers[0].self_attn.q_proj.bias is not None) == (architecture == "qwen2")


def test_gemma3_in_the_types_that_its_files_mix(tmp_path):
    """Rows of no whole number of 256 inputs are Q5_0 there, others Q4_K and Q6_K, values and embedding Q8_0."""
    kinds = {"ffn_down": "Q4_K", "attn_output": "Q6_K", "attn_v": "Q8_0", "token_embd": "Q8_0", "blk": "Q5_0"}
    types = {part: GGMLQuantizationType[kind] for part, kind in kinds.items()}
    write_llama(tmp_path / "tiny.gguf", types, architecture="gemma3", hidden=96, middle=256, head=64)
    model = load_gguf(tmp_path / "tiny.gguf", progress=False)
    assert_same_logits_as_transformers(tmp_path, model)
    bits = {name.split(".")[-1]: linear.layout.bits for name, linear in find_linears(model.model.layers[0])}
    assert bits == {
        "q_proj": 8, "k_proj": 8, "v_proj": 8, "o_proj": 8, "gate_proj": 8, "up_proj": 8, "down_proj": 4,
    }  # fmt: skip


def test_codes_are_not_quantized_again(tmp_path):
    write_llama(tmp_path / "tiny.gguf")
    model = load_gguf(tmp_path / "tiny.gguf", progress=False)
    layout = model.model.layers[0].mlp.up_proj.layout
    assert (layout.bits, layout.group_size, layout.zero_kind) == (4, 32, "add_float")


def test_activations_take_the_asked_dtype(tmp_path):
    write_llama(tmp_path / "tiny.gguf")
    model = load_gguf(tmp_path / "tiny.gguf", dtype=torch.bfloat16, progress=False)
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.scale.dtype == torch.float16


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(ZigpassError, match=r"none.gguf: no such file"):
        load_gguf(tmp_path / "none.gguf")
    path = tmp_path / "foreign.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ZigpassError, match=r"foreign.gguf: not a GGUF file, it starts with b'PK"):
        load_gguf(path)


@pytest.mark.parametrize("kept", [6, 100, 3000, -200])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = tmp_path / "cut.gguf"
    write_llama(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ZigpassError, match=r"cut.gguf: truncated or damaged GGUF file"):
        load_gguf(path)


def test_an_unsupported_architecture_is_named(tmp_path):
    write_llama(tmp_path / "x.gguf", architecture="rwkv7")
    with pytest.raises(
        ZigpassError, match="GGUF architecture 'rwkv7' is not supported, supported: llama, qwen2, qwen3"
    ):
        load_gguf(tmp_path / "x.gguf")


def test_all_matrices_that_cannot_be_relaid_are_named(tmp_path):
    types = {"ffn_down": GGMLQuantizationType.BF16, "attn_q": GGMLQuantizationType.F16}
    write_llama(tmp_path / "x.gguf", types)
    with pytest.raises(ZigpassError) as caught:
        load_gguf(tmp_path / "x.gguf", progress=False)
    message = str(caught.value)
    assert "only Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K can be relaid without loss" in message
    assert "model.layers.0.mlp.down_proj (blk.0.ffn_down.weight): BF16" in message
    assert "model.layers.0.self_attn.q_proj (blk.0.attn_q.weight): F16" in message
    assert "gate_proj" not in message


def test_tensors_of_another_shape_are_named(tmp_path):
    write_llama(tmp_path / "x.gguf", architecture="qwen3")
    with pytest.raises(ZigpassError) as caught:
        load_gguf(tmp_path / "x.gguf", progress=False)
    message = str(caught.value)
    assert "model.layers.0.self_attn.q_proj.weight (blk.0.attn_q.weight): (64, 64) in the file, (512, 64)" in message
    assert "model.layers.0.self_attn.k_norm.weight (blk.0.attn_k_norm.weight): (16,) in the file, (128,)" in message


def test_a_missing_tensor_is_named(tmp_path):
    write_llama(tmp_path / "x.gguf", leave_out="blk.0.ffn_norm.weight")
    with pytest.raises(ZigpassError, match=r"post_attention_layernorm.weight \(tensor blk.0.ffn_norm.weight\)"):
        load_gguf(tmp_path / "x.gguf", progress=False)


def test_a_reader_that_gets_the_blocks_wrong_is_caught(tmp_path, monkeypatch):
    write_llama(tmp_path / "x.gguf")
    monkeypatch.setattr("zigpass.formats.ggml_blocks._nibbles", _swapped_nibbles)
    with pytest.raises(ZigpassError, match=r"attn_q.weight: the relaid weight differs from the Q4_1 blocks"):
        load_gguf(tmp_path / "x.gguf", progress=False)


def _swapped_nibbles(raw):
    return torch.from_numpy(np.concatenate([raw >> 4, raw & 15], axis=-1).reshape(raw.shape[0], -1))
