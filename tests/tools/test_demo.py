import dataclasses
import io
import json
import subprocess

import torch
from rich.console import Console

from zigpass.evaluate import Quality
from zigpass.generate import Generation
from zigpass.tools import demo_llama
from zigpass.tools.demo import DemoResult, show, topics


def test_every_topic_is_in_one_half_of_the_text():
    from pydoc_data.topics import topics as by_name

    halves = topics()
    assert min(map(len, halves)) > 100_000
    for text in set(by_name.values()):
        if len(text) > 500:
            assert sum(text in half for half in halves) == 1


def test_the_report_shows_every_number():
    fast, slow = (Generation(torch.tensor([1, 2]), 0.5, seconds, 10) for seconds in (0.5, 1.0))
    sparsity = {"a.attn_in": 0.4, "b.attn_in": 0.6, "a.mlp_mid": 0.7}
    quality = Quality(
        dense_perplexity=11.5,
        perplexity=13.25,
        nll_increase=0.1,
        nll_error=0.01,
        kl=0.125,
        kl_error=0.0125,
        top1_agreement=0.75,
        top1_error=0.02,
        realized_sparsity=sparsity,
        total_sparsity=0.5,
        num_tokens=100,
        window_kls=(0.1, 0.15),
    )
    out = io.StringIO()
    result = DemoResult(slow, fast, "dense text", "sparse [text]", quality, 2_000_000, 1_250_000)
    show(Console(file=out, width=100), result, 0.5)
    shown = out.getvalue()
    assert "llama.cpp" not in shown
    show(Console(file=out, width=100), dataclasses.replace(result, llama_cpp_speed=123.4), 0.5)
    assert "123.4" in out.getvalue()
    for part in ("dense text", "sparse [text]", "10.0", "20.0", "2,000,000", "1,250,000", "11.50", "13.25"):
        assert part in shown, part
    for part in ("0.125 ± 0.01", "75.0%", "50.0%", "40.0%", "60.0%", "70.0%"):
        assert part in shown, part


def test_a_crash_of_llama_cpp_is_tried_again_without_its_own_layouts(monkeypatch, tmp_path):
    seen = []

    def run(command, **_):
        *_, repack = json.loads(command[-1])
        seen.append(repack)
        return subprocess.CompletedProcess(command, -11 if repack else 0, "15.5\n", "")

    monkeypatch.setattr(demo_llama.subprocess, "run", run)
    assert demo_llama.llama_cpp_speed(tmp_path / "model.gguf", [1, 2], 8, 1) == 15.5
    assert seen == [True, False]


def test_llama_cpp_that_never_works_gives_nothing(monkeypatch, tmp_path):
    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(demo_llama.subprocess, "run", run)
    assert demo_llama.llama_cpp_speed(tmp_path / "model.gguf", [1, 2], 8, 1) is None
