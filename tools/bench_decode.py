"""Whole-model decode on a GPU: tokens per second of real model shapes, dense and sparse, against other linears.

Every variant is the same Hugging Face model class, compiled whole, its one-token step captured as one CUDA graph. The
cache holds `depth` tokens. Steps are queued one behind the other, as `zigpass.generate` queues them, so that the GPU
does not wait for the host; the time of a step that the host waits for before it launches the next is reported beside
it. Thresholds come from the activations of one decode step, so that the realized sparsity is the target; it is measured
again on other tokens and reported.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from zigpass.bytes_read import weight_bytes_per_token
from zigpass.cache_argument import cache_arguments
from zigpass.decode_step import WARM_UP_STEPS, DecodeStep
from zigpass.inductor_options import DECODE_OPTIONS
from zigpass.observe import device_of, observe_sites, site_readers
from zigpass.runtime import ZigpassError
from zigpass.sites import Site
from zigpass.tools.decode_models import SHAPES, MakeLinear, Shape, build, make_bfloat16, make_tinygemm, zigzag_maker
from zigpass.tools.profile_step import Parts, profile_step
from zigpass.tools.provenance import provenance
from zigpass.watch import watch_sparsity

DEPTH: Final = 512
CACHE_LENGTH: Final = 1024
REPLAYS: Final = 60
AHEAD: Final = 3
"""Steps that are queued before the first one that counts."""
WATCHED_TOKENS: Final = 4
RESULTS: Final = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Variant:
    """Linear layers, and what compiles a model of them."""

    make: Callable[[], MakeLinear]
    backend: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


VARIANTS: Final[dict[str, Variant]] = {
    "bf16": Variant(lambda: make_bfloat16, "inductor"),
    "tinygemm": Variant(lambda: make_tinygemm, "inductor"),
    "tinygemm, our options": Variant(lambda: make_tinygemm, "inductor", DECODE_OPTIONS["cuda"]),
    "zigpass dense": Variant(lambda: zigzag_maker(sparse=False), "zigpass"),
    "sparse": Variant(lambda: zigzag_maker(sparse=True), "zigpass"),
}
DENSE: Final = tuple(name for name in VARIANTS if name != "sparse")


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of one model.

    Attributes:
        microseconds: of a decode step behind another, the median over replays, with its quartiles.
        waited_microseconds: of a step that is launched when the one before has ended, the median.
        realized_sparsity: share of the weight bytes under sites that were not read; None for the peers.
        weight_bytes: of packed weights that a step reads, the head's among them; None for the peers.
        parts: microseconds by part, from a profiler trace.
    """

    model: str
    layers: int
    variant: str
    microseconds: float
    low: float
    high: float
    waited_microseconds: float
    target_sparsity: float | None
    realized_sparsity: float | None
    weight_bytes: int | None
    parts: Parts | None

    @property
    def tokens_per_second(self) -> float:
        return 1e6 / self.microseconds

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "tokens_per_second": round(self.tokens_per_second, 1)}


def run(
    models: list[str], sparsities: list[float], variants: list[str], attention: str, profile: bool, out: Path | None
) -> None:
    """Time every model and print tables; write the JSON.

    Raises:
        ZigpassError: an unknown model or variant, a sparsity out of range, no GPU, or a file of another machine.
    """
    _check(models, sparsities, variants)
    path = out or _default_out()
    earlier = earlier_report(path, models)
    console = Console()
    rows: list[Row] = []
    for name in models:
        for row in bench_model(name, SHAPES[name], sparsities, variants, attention, profile):
            rows.append(row)
            console.print(f"{name} {row.variant}: {row.microseconds:.0f} us, {row.tokens_per_second:.0f} tokens/s")
            _write(path, attention, earlier, rows)  # after every row: a run that is cut short keeps what it has
    console.print(table_of(rows))
    if profile:
        console.print(parts_table(rows))


def bench_model(
    name: str, shape: Shape, sparsities: list[float], variants: list[str], attention: str, profile: bool
) -> Iterator[Row]:
    """The dense variants, then zigpass at every sparsity; one model is in memory at a time."""
    for variant in [*variants, *(["sparse"] if sparsities else [])]:
        how = VARIANTS[variant]
        bench = DecodeBench(build(shape, how.make(), attention=attention), how.backend, how.options)
        if variant == "sparse":
            for sparsity in sparsities:
                yield _row(name, shape, f"zigpass {sparsity:.0%}", bench, sparsity, profile)
        else:
            yield _row(name, shape, variant, bench, None, profile)
        del bench
        _forget()


def _row(name: str, shape: Shape, variant: str, bench: DecodeBench, sparsity: float | None, profile: bool) -> Row:
    realized = {} if sparsity is None else bench.set_sparsity(sparsity)
    low, median, high = statistics.quantiles(bench.times(), n=4)
    waited = statistics.median(bench.waited_times())
    return Row(
        model=name,
        layers=shape.layers,
        variant=variant,
        microseconds=median,
        low=low,
        high=high,
        waited_microseconds=waited,
        target_sparsity=sparsity,
        realized_sparsity=bench.total(realized) if realized else None,
        weight_bytes=weight_bytes_per_token(bench.model, realized) or None,
        parts=profile_step(bench.replay) if profile else None,
    )


class DecodeBench:
    """A compiled model, its cache filled to `DEPTH`, and the captured step.

    Args:
        model: from `build`.
        backend, options: of torch.compile.
    """

    def __init__(self, model: nn.Module, backend: str, options: dict[str, Any] | None = None) -> None:
        from transformers import StaticCache

        self.model = model
        config: Any = model.config
        self.device = device_of(model)
        self.vocabulary: int = config.vocab_size
        tokens = torch.randint(0, self.vocabulary, (1, DEPTH), device=self.device)
        self.token = tokens[:, -1:]
        self.cache = StaticCache(config=config, max_cache_len=CACHE_LENGTH)
        with torch.inference_mode():
            model(tokens, **cache_arguments(model, self.cache), logits_to_keep=1)
        if backend == "zigpass":
            options = {"require_match": True, **(options or {})}
        compiled = torch.compile(model, backend=backend, fullgraph=True, options=options)
        self._step = DecodeStep(compiled, self.cache, cuda_graph=self.device.type == "cuda")
        with torch.inference_mode():
            for _ in range(WARM_UP_STEPS + 1):
                self._step(self.token)
        self.rewind()

    def rewind(self) -> None:
        """Say that the cache holds `DEPTH` tokens again."""
        with torch.inference_mode():  # the cache was made in it
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(DEPTH)

    def replay(self) -> None:
        with torch.inference_mode():
            self._step(self.token)

    def times(self) -> list[float]:
        """Microseconds of each of `REPLAYS` steps that are queued one behind the other."""
        self.rewind()
        for _ in range(AHEAD):
            self.replay()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        events[0].record()
        for event in events[1:]:
            self.replay()
            event.record()
        events[-1].synchronize()
        self.rewind()
        return [float(before.elapsed_time(after)) * 1e3 for before, after in itertools.pairwise(events)]

    def waited_times(self) -> list[float]:
        """Microseconds of each of `REPLAYS` steps, launched when the one before has ended."""
        self.rewind()
        times = []
        for _ in range(REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.replay()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)) * 1e3)
        self.rewind()
        return times

    def set_sparsity(self, sparsity: float) -> dict[str, float]:
        """Set every threshold to the quantile of its activation in one decode step; realized sparsity by site."""
        readers = site_readers(self.model)

        def observe(site: Site, x: Tensor) -> None:
            site.set_threshold(float(x.abs().float().flatten().quantile(sparsity)) if sparsity else 0.0, sparsity)

        with torch.inference_mode(), observe_sites(readers, observe):
            self._eager_step(self.token)
        with torch.inference_mode(), watch_sparsity(self.model) as watch:
            for token in torch.randint(0, self.vocabulary, (WATCHED_TOKENS, 1, 1), device=self.device):
                self._eager_step(token)
        self.rewind()
        return watch.sites

    def total(self, realized: dict[str, float]) -> float:
        """Share of the code bytes under sites that a step does not read."""
        unread = every = 0.0
        for site, linears in site_readers(self.model).items():
            num_bytes = sum(linear.codes.nbytes for linear in linears)
            every += num_bytes
            unread += num_bytes * realized[site.name]
        return unread / every

    def _eager_step(self, token: Tensor) -> None:
        self.rewind()
        self.model(token, **cache_arguments(self.model, self.cache))


def table_of(rows: list[Row]) -> Table:
    """Steps and ratios to the int4 peer where it was run, else to bfloat16."""
    table = Table(
        "model", "variant", "us / token", "waited for", "tokens/s", "to tinygemm", "realized", "GB/s of weights"
    )
    peers = {row.model: row.microseconds for row in rows if row.variant == "tinygemm"}
    for row in rows:
        ratio = peers.get(row.model)
        table.add_row(
            f"{row.model} ({row.layers} layers)",
            row.variant,
            f"{row.microseconds:.0f} ({row.low:.0f} to {row.high:.0f})",
            f"{row.waited_microseconds:.0f}",
            f"{row.tokens_per_second:.0f}",
            "" if ratio is None else f"{ratio / row.microseconds:.2f}x",
            "" if row.realized_sparsity is None else f"{row.realized_sparsity:.1%}",
            "" if row.weight_bytes is None else f"{row.weight_bytes / row.microseconds / 1e3:.0f}",
        )
    return table


def parts_table(rows: list[Row]) -> Table:
    """Microseconds of a step by part."""
    names = ("attention", "linears", "head", "other", "gaps")
    table = Table("model", "variant", *names, "kernels", title="microseconds by part, profiler")
    for row in rows:
        if row.parts is not None:
            values = [f"{getattr(row.parts, name):.0f}" for name in names]
            table.add_row(row.model, row.variant, *values, str(row.parts.kernels))
    return table


def _check(models: list[str], sparsities: list[float], variants: list[str]) -> None:
    wrong = [f"unknown model {name!r}, known are {', '.join(SHAPES)}" for name in models if name not in SHAPES]
    wrong += [f"a sparsity is in [0, 1), got {sparsity}" for sparsity in sparsities if not 0 <= sparsity < 1]
    wrong += [f"unknown variant {name!r}, known are {', '.join(DENSE)}" for name in variants if name not in DENSE]
    if not torch.cuda.is_available():
        wrong.append("this benchmark needs a GPU, and torch sees none here")
    if wrong:
        raise ZigpassError("; ".join(wrong))


def _forget() -> None:
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _default_out() -> Path:
    name = torch.cuda.get_device_name().lower().replace("nvidia ", "").replace(" ", "_")
    return RESULTS / f"decode_{name}.json"


def earlier_report(path: Path, models: list[str]) -> dict[str, Any]:
    """Rows and shapes of other models that a file has: a run may be cut into several, of some models each.

    Raises:
        ZigpassError: the file is of another GPU, torch or commit, whose numbers must not be mixed with new ones.
    """
    if not path.is_file():
        return {"rows": [], "shapes": {}}
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in report["rows"] if row["model"] not in models]
    here = _origin(provenance())
    if rows and _origin(report["environment"]) != here:
        found = ", ".join(_origin(report["environment"]))
        raise ZigpassError(f"{path} has rows of {found}, this is {', '.join(here)}; give another --out")
    return {"rows": rows, "shapes": {row["model"]: report["shapes"][row["model"]] for row in rows}}


def _origin(environment: dict[str, Any]) -> list[str]:
    return [*environment["cuda_devices"], f"torch {environment['packages']['torch']}", environment["commit"]]


def _write(path: Path, attention: str, earlier: dict[str, Any], rows: list[Row]) -> None:
    report = {
        "environment": provenance(),
        "depth": DEPTH,
        "cache_length": CACHE_LENGTH,
        "attention": attention,
        "shapes": {**earlier["shapes"], **{row.model: dataclasses.asdict(SHAPES[row.model]) for row in rows}},
        "rows": [*earlier["rows"], *(row.as_json() for row in rows)],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
