"""Exported MLPs in onnxruntime, native and stock, one row of input: `zigpass bench onnx`.

A SwiGLU MLP is exported once; one file runs natively (`zigpass.ort`), at several sparsities, and in stock onnxruntime,
which fuses its function bodies to MatMulNBits with int8 activations. Beside them runs the same MLP written with
MatMulNBits and accuracy_level=4 by hand, onnxruntime's int8 path. All candidates run in one process and one thread, in
turns, with inputs and outputs bound and with three copies of the weights in rotation. Times are CPU time of the thread,
which on a shared machine leaves out what the other programs took.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from zigpass.linear import ZigzagLinear
from zigpass.onnx.export import export_onnx
from zigpass.runtime import PackedWeight, ZigpassError
from zigpass.sites import Site
from zigpass.tools import bench_peers as peers
from zigpass.tools.bench_cpu import MLP, RESULTS, machine, random_weight, threshold_for
from zigpass.tools.bench_timing import Timing, pin_to

SPARSITIES = (0.0, 0.5)
COPIES = 3
CALLS_IN_A_ROW = 4
STOCK = "stock onnxruntime, MatMulNBits int8"


class Mlp(nn.Module):
    """A SwiGLU MLP of random packed weights."""

    def __init__(self, k: int, middle: int) -> None:
        super().__init__()
        read, written = Site("mlp_in", "mlp_in", k), Site("mlp_mid", "mlp_mid", middle)
        self.gate_proj = _linear(middle, k, read)
        self.up_proj = _linear(middle, k, read)
        self.down_proj = _linear(k, middle, written)

    def middle(self, x: Tensor) -> Tensor:
        """The input of the down projection."""
        middle: Tensor = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.middle(x))
        return out

    def set_sparsity(self, x: Tensor, sparsity: float) -> None:
        """Set both thresholds so that this share of the entries falls below them for this input."""
        for linear in (self.up_proj, self.down_proj):
            assert linear.site is not None
            values = x if linear is self.up_proj else self.middle(x)  # the middle of the MLP that is sparse already
            threshold = threshold_for(values, sparsity)
            linear.site.set_threshold(torch.zeros(1) if threshold is None else threshold)


def _linear(n: int, k: int, site: Site) -> ZigzagLinear:
    weight = random_weight(n, k, "in", 1)
    return ZigzagLinear(PackedWeight(weight.layout, tuple(weight.copies[0])), None, site)


def run(core: int, rounds: int, small: bool, out: Path | None) -> None:
    """The whole benchmark; the options of `zigpass bench onnx` say what the arguments mean."""
    if not peers.has_onnxruntime():
        raise ZigpassError("onnx and onnxruntime are not installed: pip install 'zigpass[onnx]'")
    torch.set_num_threads(1)
    pin_to(core)
    k, middle = (512, 1024) if small else MLP
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        rows = mlp_rows(k, middle, rounds, Path(folder))
    console = Console()
    console.print(table(rows))
    import onnxruntime

    report: dict[str, Any] = {"machine": machine(), "onnxruntime": onnxruntime.__version__, "threads": 1}
    report |= {"rounds": rounds, "copies": COPIES, "time": "CPU time of the thread", "rows": rows}
    path = out or RESULTS / f"onnx-{platform.machine()}-1t.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"wrote {path}")


def mlp_rows(k: int, middle: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Times of every candidate and ratios to stock onnxruntime."""
    x = torch.randn(1, k)
    model, paths = Mlp(k, middle), {}
    for sparsity in SPARSITIES:
        model.set_sparsity(x, sparsity)
        paths[sparsity] = folder / f"{sparsity}.onnx"
        export_onnx(model, paths[sparsity], example_inputs=(x,), progress=False)
    candidates: dict[str, peers.Call] = {STOCK: peers.onnxruntime_mlp(k, middle, COPIES)}
    candidates["exported file, stock onnxruntime"] = _rotated(
        [BoundSession(paths[0.0], x, False) for _ in range(COPIES)]
    )
    native = {s: [BoundSession(path, x, True) for _ in range(COPIES)] for s, path in paths.items()}
    candidates |= {f"native, {sparsity:.0%} sparse": _rotated(sessions) for sparsity, sessions in native.items()}
    timings = cpu_times(candidates, rounds)
    return [_row(f"MLP {k}-{middle}", name, timing, timings[STOCK]) for name, timing in timings.items()]


def cpu_times(candidates: Mapping[str, peers.Call], rounds: int) -> dict[str, Timing]:
    """Time candidates in turns, a few calls each; the first of a turn is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds):
        for name, call in candidates.items():
            for index in range(CALLS_IN_A_ROW):
                begin = time.thread_time_ns()
                call((turn * CALLS_IN_A_ROW + index) % COPIES)
                end = time.thread_time_ns()
                if index and turn:
                    samples[name].append((end - begin) / 1000)
    return {name: Timing.of(values) for name, values in samples.items()}


def _rotated(sessions: list[BoundSession]) -> peers.Call:
    return lambda copy: sessions[copy].run()


def _row(shape: str, name: str, timing: Timing, stock: Timing) -> dict[str, Any]:
    ratio = round(stock.median / timing.median, 2)
    return {"shape": shape, "candidate": name, "us": dataclasses.asdict(timing), "ratio_to_stock": ratio}


class BoundSession:
    """A session of a file from X [1, k] to one output, with both bound once."""

    def __init__(self, path: Path, x: Tensor, native: bool) -> None:
        import onnxruntime

        from zigpass import ort

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        if native:
            self.session = ort.session(path, options)
        else:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.x = x.numpy()
        self.binding.bind_cpu_input(self.session.get_inputs()[0].name, self.x)
        self.binding.bind_output(self.session.get_outputs()[0].name, "cpu")

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for people."""
    result = Table("shape", "candidate", "us", "ratio to stock")
    for row in rows:
        time = row["us"]
        cells = f"{time['median']:.0f} ({time['low']:.0f}-{time['high']:.0f})"
        result.add_row(row["shape"], row["candidate"], cells, f"{row['ratio_to_stock']:.2f}")
    return result
