"""An inspection as one HTML file that opens without a network."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from zigpass.runtime import ZigpassError

SECTIONS = (
    ("summary", "summary"),
    ("passes", "passes"),
    ("layers", "layers"),
    ("graph", "before and after"),
    ("histograms", "activations"),
    ("refusals", "refusals"),
)
SHOWN_BY_SCRIPT = ("blocks", "sites")
DIFF_CLASSES = {"+": "added", "-": "removed", "@": "place"}


def write_html(data: dict[str, Any], path: Path) -> None:
    """Write the report on what `Inspected.to_dict` gives.

    Raises:
        ZigpassError: jinja2 is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_html(data), encoding="utf-8")


def render_html(data: dict[str, Any]) -> str:
    """The text of the file; style and script stand in it."""
    try:
        import jinja2
    except ImportError as error:
        raise ZigpassError("the HTML report needs jinja2: pip install 'zigpass[inspect]'") from error
    files = importlib.resources.files("zigpass.tools") / "templates"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((files / "report.html").read_text(encoding="utf-8"))
    text: str = template.render(
        **data,
        css=(files / "report.css").read_text(encoding="utf-8"),
        js=(files / "report.js").read_text(encoding="utf-8"),
        sections=SECTIONS,
        cards=cards(data),
        machine_line=machine_line(data["machine"]),
        sites_by_name={site["name"]: site for site in data["sites"]},
        line_class=lambda line: DIFF_CLASSES.get(line[:1], ""),
        data={name: data[name] for name in SHOWN_BY_SCRIPT},
    )
    return text


def cards(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The numbers at the top: what, how much, and what it means."""
    linears = data["linears"]
    sparse = [row for row in linears if row["kind"] in ("gated_mlp", "mlp", "qkv", "linear")]
    sites = {row["site"] for row in sparse}
    bound = data["bound"]
    found = [
        ("model", data["title"], f"{len(linears)} linear layers"),
        ("matched", f"{len(sparse)} linears", f"on {len(sites)} sites"),
        ("bytes per token, dense", megabytes(bound["dense_bytes"]), "all linear layers"),
        ("bytes per token, sparse", megabytes(bound["sparse_bytes"]), _saved(bound)),
    ]
    if bound["bandwidth"]:
        dense, fast = (bound[f"{name}_tokens_per_second"] for name in ("dense", "sparse"))
        speed = "not known" if fast is None else f"{fast:.0f} tokens/s"
        detail = f"{dense:.0f} dense; reads {bound['bandwidth'] / 1e9:.1f} GB/s" if dense else ""
        found.append(("expected bound on this device", speed, detail))
    return found


def megabytes(num_bytes: int | None) -> str:
    return "not known" if num_bytes is None else f"{num_bytes / 1e6:.1f} MB"


def _saved(bound: dict[str, Any]) -> str:
    if not bound["sparse_bytes"]:
        return "calibrate the model, or pass --sparsity"
    return f"{bound['dense_bytes'] / bound['sparse_bytes']:.2f}x fewer"


def machine_line(machine: dict[str, Any]) -> str:
    packages = machine["packages"]
    return ", ".join([machine["cpu"], *machine["cuda_devices"], *(f"{n} {packages[n]}" for n in ("torch", "zigpass"))])
