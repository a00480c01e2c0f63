"""Does an exported model say what torch says? `python -m zigpass.tools.check_export`.

Exports SmolLM2-135M-Instruct (or another GGUF file) twice. Dense, it decodes 64 tokens greedily in torch, in stock
onnxruntime and, when it is installed, in onnxruntime-genai: the tokens must be the same. Sparse, it reads held-out text
token by token in torch, in stock onnxruntime and with the native ops: the perplexities must agree. Activations stay
float32 throughout (accuracy level 0), so that differences are those of the export. A minute or ten.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shutil
import time
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from zigpass.cache_argument import cache_arguments
from zigpass.calibrate import calibrate
from zigpass.cli import run_script
from zigpass.demo_checkpoint import find_checkpoint
from zigpass.generate import generate
from zigpass.gguf_tokenizer import load_gguf_tokenizer
from zigpass.linear import find_linears
from zigpass.load_gguf import load_gguf
from zigpass.onnx.export import ExportReport, export_onnx
from zigpass.onnx.genai import CONFIG_NAME
from zigpass.runtime import ZigpassError
from zigpass.sites import dense
from zigpass.tools.demo import PROMPT, encode_prompt, topics

ACCURACY_LEVEL: Final = "session.qdq_matmulnbits_accuracy_level"


class OnnxModel:
    """An exported causal language model, run step by step with its cache."""

    def __init__(self, path: Path, native: bool) -> None:
        import onnxruntime

        from zigpass import ort

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(ACCURACY_LEVEL, "0")
        if native:
            self.session = ort.session(path, options)
        else:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        """Forget the cache."""
        self.past = {
            value.name: np.zeros([1, value.shape[1], 0, value.shape[3]], np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values")
        }

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits [T, vocabulary] of further tokens [1, T]."""
        seen, count = next(iter(self.past.values())).shape[2], ids.shape[1]
        inputs = {
            "input_ids": ids.numpy(),
            "attention_mask": np.ones((1, seen + count), np.int64),
            "position_ids": np.arange(seen, seen + count, dtype=np.int64)[None],
        }
        logits, *present = self.session.run(None, {**inputs, **self.past})
        self.past = dict(zip(self.past, present, strict=True))
        return torch.from_numpy(logits[0])


class TorchModel:
    """The model in torch, with the same interface."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Forget the cache."""
        from transformers import DynamicCache

        self.cache = DynamicCache()

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits [T, vocabulary] of further tokens [1, T]."""
        with torch.inference_mode():
            logits: Tensor = self.model(ids, **cache_arguments(self.model, self.cache)).logits[0]
        return logits


def check_export(
    gguf: Annotated[Path | None, typer.Option(help="Another GGUF file to take.")] = None,
    folder: Annotated[Path, typer.Option(help="Where to write the exported models.")] = Path("exported"),
    tokens: Annotated[int, typer.Option(help="Tokens to decode greedily.")] = 64,
    sparsity: Annotated[float, typer.Option(help="Target of the sparse model.")] = 0.5,
    window: Annotated[int, typer.Option(help="Held-out tokens of a window; the first half runs densely.")] = 256,
    windows: Annotated[int, typer.Option(help="Held-out windows.")] = 2,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Compare an exported model with torch, token by token."""
    console = Console()
    path = gguf or find_checkpoint(announce=console.print)
    model, tokenizer = load_gguf(path), load_gguf_tokenizer(path)
    calibration_text, held_out = topics()
    thresholds = calibrate(
        model, calibration_text, sparsity, allocation="uniform", tokenizer=tokenizer, window=256, num_windows=4
    )
    ids = encode_prompt(tokenizer, PROMPT)
    start = time.perf_counter()
    with dense(model):
        report = export_onnx(model, folder / "dense" / "model.onnx", tokenizer=tokenizer)
        seconds = time.perf_counter() - start
        expected = generate(model, ids, max_new_tokens=tokens).tokens.tolist()
    console.print(report)
    export_onnx(model, folder / "sparse" / "model.onnx", thresholds=thresholds)
    greedy = {"onnxruntime": greedy_tokens(OnnxModel(folder / "dense" / "model.onnx", False), ids, tokens)}
    greedy["onnxruntime, native"] = greedy_tokens(OnnxModel(folder / "dense" / "model.onnx", True), ids, tokens)
    if importlib.util.find_spec("onnxruntime_genai") is not None:
        greedy["onnxruntime-genai"] = genai_tokens(folder / "dense", ids, tokens)
    text = tokenizer(held_out, return_tensors="pt").input_ids[:, : window * windows].view(windows, window)
    sparse_path = folder / "sparse" / "model.onnx"
    models: dict[str, OnnxModel | TorchModel] = {
        "torch": TorchModel(model),
        "onnxruntime": OnnxModel(sparse_path, False),
    }
    models["onnxruntime, native"] = OnnxModel(sparse_path, True)
    result: dict[str, Any] = {
        "model": path.stem,
        "export_seconds": round(seconds, 1),
        "sizes": sizes(model, report),
        "same_tokens": {name: found == expected for name, found in greedy.items()},
        "tokens": len(expected),
        "sparsity": sparsity,
        "scored_tokens": windows * (window - window // 2 - 1),
        "perplexity": {name: perplexity(each, text) for name, each in models.items()},
        "versions": versions(),
    }
    console.print_json(data=result)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if not all(result["same_tokens"].values()):
        raise ZigpassError(f"the tokens differ: torch {expected}, {greedy}")


def greedy_tokens(model: OnnxModel, ids: Tensor, count: int) -> list[int]:
    """The most likely tokens after a prompt int64 [1, T]."""
    token = model(ids)[-1].argmax()
    found = [int(token)]
    while len(found) < count:
        token = model(token.view(1, 1))[-1].argmax()
        found.append(int(token))
    return found


def genai_tokens(folder: Path, ids: Tensor, count: int) -> list[int]:
    """The same, by onnxruntime-genai, with the configuration that the export wrote but for the accuracy level."""
    import onnxruntime_genai as genai

    precise = folder.with_name(f"{folder.name}-genai")
    shutil.copytree(folder, precise, dirs_exist_ok=True)
    config = json.loads((precise / CONFIG_NAME).read_text())
    config["model"]["decoder"]["session_options"][ACCURACY_LEVEL] = "0"
    (precise / CONFIG_NAME).write_text(json.dumps(config))
    model = genai.Model(str(precise))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=ids.shape[1] + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids.numpy().astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[ids.shape[1] :]]


def perplexity(model: OnnxModel | TorchModel, windows: Tensor) -> float:
    """Of the second half of each window, read token by token; the first half is read at once."""
    losses = []
    for ids in windows:
        model.reset()
        middle = len(ids) // 2
        model(ids[None, :middle])
        for place in range(middle, len(ids) - 1):
            logits = model(ids[None, place : place + 1])[-1]
            losses.append(-torch.log_softmax(logits.float(), -1)[ids[place + 1]].item())
    return round(math.exp(sum(losses) / len(losses)), 4)


def sizes(model: Any, report: ExportReport) -> dict[str, float]:
    """Bytes of the model's files, and of what they must hold."""
    packed = sum(linear.packed.num_bytes for _, linear in find_linears(model))
    embeddings = model.get_input_embeddings().weight.nbytes
    written = sum(size for path, size in report.files.items() if ".onnx" in path.name)
    ratio = round(written / (packed + embeddings), 4)
    return {"file": written, "packed_weights": packed, "embeddings": embeddings, "ratio": ratio}


def versions() -> dict[str, str]:
    """Of the libraries that took part."""
    names = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime_genai")
    present = [name for name in names if importlib.util.find_spec(name) is not None]
    return {name: importlib.import_module(name).__version__ for name in present}


if __name__ == "__main__":
    run_script(check_export)
