"""Answer a prompt with a model, token by token as they come: `zigpass generate` or `python tools/generate.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from zigpass.cli import run_script
from zigpass.generate import generate as generate_tokens
from zigpass.runtime import ZigpassError
from zigpass.sampling import Sampling
from zigpass.thresholds import Thresholds
from zigpass.tools.demo import encode_prompt
from zigpass.tools.device_option import Device, find_device, move_to
from zigpass.tools.load_model import load_model


def generate(
    model: Annotated[Path, typer.Argument(help="GGUF file, folder of save_pretrained, or int4 Hugging Face folder.")],
    prompt: Annotated[str, typer.Argument(help="What to answer; in the model's chat form where it has one.")],
    thresholds: Annotated[
        Path | None, typer.Option(help="From `zigpass calibrate`; without it the model's own.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token; above 0 samples.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample among this many tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the fewest tokens that reach this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    device: Device = "",
    compile_model: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the decode step first.")
    ] = True,
) -> None:
    """Answer a prompt, streaming, and say how fast it was."""
    from transformers import TextStreamer

    sampling = None
    if temperature:
        sampling = Sampling(temperature, top_k, top_p, seed)
    elif top_k or top_p < 1:
        raise ZigpassError("--top-k and --top-p choose among sampled tokens: give a --temperature above 0 too")
    place = find_device(device)
    network, tokenizer = load_model(model)
    if thresholds is not None:
        Thresholds.load(thresholds).apply(network)
    network = move_to(network, place)
    ids = encode_prompt(tokenizer, prompt).to(place)
    decode = None
    room = ids.shape[1] + max_new_tokens
    if compile_model:
        decode = torch.compile(network, backend="zigpass", options={"require_match": True})
        with Console(stderr=True).status("compiling the decode step (once)"):
            generate_tokens(network, ids, max_new_tokens=min(3, max_new_tokens), decode=decode, cache_length=room)
    result = generate_tokens(
        network,
        ids,
        max_new_tokens=max_new_tokens,
        decode=decode,
        end_tokens={tokenizer.eos_token_id},
        cache_length=room,
        sampling=sampling,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    typer.echo(f"[{result.summary}]")


if __name__ == "__main__":
    run_script(generate)
