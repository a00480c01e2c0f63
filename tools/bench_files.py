"""The files that `zigpass bench cpu`, `mlp` and `gemv` write, read into one form."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zigpass.runtime import ZigpassError

CPU_BITS, CPU_GROUP = 4, 128
_SIZES = re.compile(r"(?P<mlp>MLP )?(?P<k>\d+)[x-](?P<n>\d+)$")
MLPS = {"7B": (4096, 11008), "8B": (4096, 14336), "70B": (8192, 28672)}
"""Hidden and middle size of the models that `zigpass bench mlp` names."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        shape: what was timed, for people.
        device: processor or GPU.
        scale_axis: "in" or "out"; `sparsity`: share of entries below the threshold, 0 for dense.
        microseconds: of a call; `peer_microseconds`: of the best dense peer in the same run.
        num_bytes: codes and scales that the call reads.
    """

    shape: str
    device: str
    scale_axis: str
    sparsity: float
    microseconds: float
    peer_microseconds: float
    num_bytes: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.num_bytes / self.microseconds * 1e6


def read_points(paths: Iterable[Path]) -> list[Point]:
    """All measurements of some files.

    Raises:
        ZigpassError: a file of another kind.
    """
    points: list[Point] = []
    for path in paths:
        points += _read(path)
    if not points:
        raise ZigpassError("no measurements in these files")
    return points


def _read(path: Path) -> list[Point]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _gpu(document) if "results" in document else _cpu(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ZigpassError(f"{path}: not a file of zigpass bench ({error!r})") from error


def _cpu(document: dict[str, Any]) -> list[Point]:
    return [
        Point(
            shape=row["shape"],
            device=f"{document['machine']['cpu']}, {_threads(document['threads'])}, {row['activations']} activations",
            scale_axis=row["scale_axis"],
            sparsity=row["sparsity"],
            microseconds=row["zigpass_us"]["median"],
            peer_microseconds=row["peers_us"][row["best_peer"]]["median"],
            num_bytes=_cpu_bytes(row["shape"], row["scale_axis"], row["sparsity"]),
        )
        for row in document["rows"]
    ]


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _cpu_bytes(shape: str, scale_axis: str, sparsity: float) -> float:
    sizes = _SIZES.match(shape)
    if sizes is None:
        raise ValueError(f"shape {shape!r}")
    weights = int(sizes["k"]) * int(sizes["n"]) * (3 if sizes["mlp"] else 1)
    if scale_axis == "out":
        return weights * (CPU_BITS + 0.5) / 8 * (1 - sparsity)
    return weights * (CPU_BITS / 8 * (1 - sparsity) + 3 / CPU_GROUP)  # fp16 scale and uint8 zero of every group


def _gpu(document: dict[str, Any]) -> list[Point]:
    found = []
    for row in document["results"]:
        if row["kind"] not in ("mlp", "gemv"):
            continue
        is_mlp = row["kind"] == "mlp"
        time = row["us"]
        shape = "MLP {}-{}".format(*MLPS[row["name"]]) if is_mlp else "x".join(reversed(row["name"].split("x")))
        found.append(
            Point(
                shape=shape,
                device=document["environment"]["gpu"],
                scale_axis=row["axis"],
                sparsity=row["sparsity"] or 0.0,
                microseconds=time,
                peer_microseconds=row["tinygemm_us"],
                num_bytes=row["active_gb_per_s"] * 1e3 * time,
            )
        )
    return found
