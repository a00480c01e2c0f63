"""What a CUDA kernel for one shape looks like: `zigpass inspect-kernel` or `python tools/inspect_kernel.py`.

The kernel is selected as a launch selects it and compiled by NVRTC; no GPU is needed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.table import Table

from zigpass.cli import run_script
from zigpass.runtime import Layout, ZigpassError
from zigpass.runtime.cuda.compiler import compile_verbose
from zigpass.runtime.cuda.device import Device
from zigpass.runtime.cuda.formats import FORMATS
from zigpass.runtime.cuda.plan import Shape, cut_launch, weight_kind
from zigpass.runtime.cuda.specialization import Gemv, LaunchConfig
from zigpass.runtime.layout import BLOCK_ROWS, COLUMN_RECORD_WORDS, COLUMN_SUPERBLOCK, ScaleAxis, ZeroKind, round_up
from zigpass.tools.architectures import ARCHITECTURES, Architecture, occupancy
from zigpass.tools.sass import disassemble, hot_loop

KERNEL = "zigzag_gemv"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ZERO_DTYPES: dict[ZeroKind, torch.dtype] = {
    "sub_int": torch.uint8,
    "sub_float": torch.float16,
    "add_float": torch.float32,
    "column": torch.float16,
}
_PROPERTIES = re.compile(
    r"Function properties for (?P<name>\w+).*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """One specialization on one architecture.

    Attributes:
        layout: of the weight.
        arch: compute capability as one number.
        macros: the specialization, as the compiler gets it.
        blocks, threads: of the grid and of a block.
        registers: of a thread; `spill_bytes` of them live in local memory.
        shared_bytes: dynamic shared memory of a block.
        blocks_per_sm: how many fit a multiprocessor, and `limit`, what keeps it from more.
        occupancy: share of the warps that a multiprocessor can hold.
        superblock_bytes: codes and scales that one active column of one band costs.
        step_instructions: warp instructions that the main loop holds for a step of 16 columns and `warp_rows` rows;
            what it runs at the end of a group only is among them. None without a disassembler.
        superblock_instructions: the same for one active column of one band.
    """

    layout: str
    arch: int
    macros: dict[str, int]
    blocks: int
    threads: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    blocks_per_sm: int
    limit: str
    occupancy: float
    superblock_bytes: float
    warp_rows: int
    step_instructions: float | None
    superblock_instructions: float | None


def inspect_kernel(
    n: Annotated[int, typer.Argument(help="Output rows N.")],
    k: Annotated[int, typer.Argument(help="Input columns K.")],
    arch: Annotated[int, typer.Option(help="Compute capability as one number, 90 for 9.0.")] = 90,
    bits: Annotated[int, typer.Option(help="2, 4 or 8.")] = 4,
    scale_axis: Annotated[str, typer.Option(help="in or out.")] = "in",
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale, with scale axis in.")] = 128,
    zero_kind: Annotated[str, typer.Option(help="sub_int, sub_float or add_float, with scale axis in.")] = "sub_int",
    band: Annotated[int | None, typer.Option(help="Rows of a band; all of N by default.")] = None,
    rows: Annotated[int, typer.Option(help="Rows of x: 1, 2 or 4.")] = 1,
    dense: Annotated[bool, typer.Option("--dense", help="The kernel without threshold.")] = False,
    dtype: Annotated[str, typer.Option(help="Of x and y: bf16, fp16 or fp32.")] = "bf16",
    multiprocessors: Annotated[int | None, typer.Option(help="Of the GPU; by default of a usual one.")] = None,
    sass: Annotated[bool, typer.Option("--sass", help="Print the machine code of the kernel.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a shape selects: specialization, registers, shared memory, spills, occupancy, cost of a superblock."""
    if dtype not in DTYPES:
        raise ZigpassError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    axis_out = scale_axis == "out"
    layout = Layout(
        n=n,
        k=k,
        bits=bits,
        scale_axis=cast(ScaleAxis, scale_axis),
        group_size=32 if axis_out else group_size,
        zero_kind="column" if axis_out else cast(ZeroKind, zero_kind),
        band=band or round_up(n, BLOCK_ROWS),
    )
    shape, code, log = build(layout, arch, rows, not dense, DTYPES[dtype], multiprocessors)
    listing = disassemble(code, KERNEL, required=sass)
    if sass:
        typer.echo(listing)
        return
    report = describe(layout, arch, shape, log, listing)
    if json_output:
        typer.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        Console().print(report_table(report))


def build(
    layout: Layout, arch: int, rows: int, sparse: bool, dtype: torch.dtype, multiprocessors: int | None = None
) -> tuple[Shape, bytes, str]:
    """Select and compile; the cut of the launch, the cubin, and what the assembler says.

    Raises:
        ZigpassError: an architecture that is not known, a form without a kernel, no NVRTC.
    """
    known = architecture(arch)
    held = [torch.int32, torch.float16, ZERO_DTYPES[layout.zero_kind]][: layout.num_tensors]
    kind = weight_kind(layout, [torch.empty(0, dtype=one) for one in held])
    if kind is None or rows not in (1, 2, 4):
        raise ZigpassError(f"{layout.spec} with {rows} rows of x has no kernel of its own; it runs through cuBLAS")
    device = Device(
        index=0,
        name=f"sm_{arch}",
        arch=arch,
        multiprocessors=multiprocessors or known.multiprocessors,
        shared_limit=known.shared_per_block,
    )
    wanted = Gemv(kind, LaunchConfig(1, 1, 1, 1), FORMATS[dtype], FORMATS[dtype], sparse, rows)
    shape = cut_launch(device, wanted, [layout], None)
    code, log = compile_verbose("gemv.cu", shape.gemv.macros, arch)
    return shape, bytes(code.code), log


def architecture(arch: int) -> Architecture:
    """Limits of an architecture, or `ZigpassError`."""
    if arch not in ARCHITECTURES:
        raise ZigpassError(f"--arch must be one of {', '.join(map(str, ARCHITECTURES))}, got {arch}")
    return ARCHITECTURES[arch]


def describe(layout: Layout, arch: int, shape: Shape, log: str, listing: str | None) -> KernelReport:
    """The report on a compiled specialization."""
    gemv = shape.gemv
    used = read_properties(log)
    fit = occupancy(architecture(arch), gemv.config.threads, used["registers"], gemv.shared_bytes)
    warp_rows = gemv.tile // gemv.config.row_warps
    per_step = None
    if listing is not None:
        # Before sm_80 an mma has 8 columns: a step takes two.
        per_step = hot_loop(listing, products_per_step=warp_rows // 16 * (1 if arch >= 80 else 2))
    return KernelReport(
        layout=layout.spec,
        arch=arch,
        macros=gemv.macros,
        blocks=shape.blocks,
        threads=gemv.config.threads,
        registers=used["registers"],
        spill_bytes=used["stores"] + used["loads"],
        shared_bytes=gemv.shared_bytes,
        blocks_per_sm=fit.blocks,
        limit=fit.limit,
        occupancy=fit.share,
        superblock_bytes=superblock_bytes(layout),
        warp_rows=warp_rows,
        step_instructions=per_step,
        superblock_instructions=None if per_step is None else per_step / 16 * layout.band / warp_rows,
    )


def read_properties(log: str) -> dict[str, int]:
    """Registers and spills of the GEMV from what ptxas prints.

    Raises:
        ZigpassError: ptxas printed something else.
    """
    for found in _PROPERTIES.finditer(log):
        if found["name"] == KERNEL:
            return {name: int(found[name]) for name in ("registers", "stores", "loads", "stack")}
    raise ZigpassError(f"the assembler says nothing about {KERNEL}: {log.strip() or 'it printed nothing'}")


def superblock_bytes(layout: Layout) -> float:
    """Bytes of one column of a whole band, with its share of the scales of its group."""
    codes = layout.band * layout.bits / 8
    if layout.scale_axis == "out":
        return codes + -(-layout.band // COLUMN_SUPERBLOCK) * COLUMN_RECORD_WORDS * 4
    return codes + layout.band * (2 + ZERO_DTYPES[layout.zero_kind].itemsize) / min(layout.group_size, layout.k)


def report_table(report: KernelReport) -> Table:
    """The report as two columns."""
    table = Table(
        title=f"{KERNEL}, sm_{report.arch}, {report.layout}", title_justify="left", show_header=False, box=None
    )
    instructions = "not known: no disassembler (pip install nvidia-cuda-nvdisasm)"
    if report.step_instructions is not None and report.superblock_instructions is not None:
        instructions = (
            f"at most {report.superblock_instructions:.1f} warp instructions ({report.step_instructions:.0f} in the"
            f" main loop for 16 columns of {report.warp_rows} rows)"
        )
    rows: list[tuple[str, Any]] = [
        ("specialization", " ".join(f"{name}={value}" for name, value in report.macros.items())),
        ("grid", f"{report.blocks} blocks of {report.threads} threads"),
        ("registers", f"{report.registers} a thread"),
        ("spills", f"{report.spill_bytes} bytes"),
        ("shared memory", f"{report.shared_bytes:,} bytes a block"),
        ("occupancy bound", f"{report.occupancy:.0%}: {report.blocks_per_sm} blocks, limited by {report.limit}"),
        ("a superblock reads", f"{report.superblock_bytes:,.1f} bytes"),
        ("a superblock takes", instructions),
    ]
    for name, value in rows:
        table.add_row(name, str(value))
    return table


if __name__ == "__main__":
    run_script(inspect_kernel)
