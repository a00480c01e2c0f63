"""What is said about a kernel; needs NVRTC and no GPU."""

import json

import pytest
from typer.testing import CliRunner

from zigpass.cli import app
from zigpass.runtime import Layout, ZigpassError
from zigpass.runtime.cuda import compiler
from zigpass.tools.architectures import ARCHITECTURES, occupancy
from zigpass.tools.inspect_kernel import read_properties, superblock_bytes
from zigpass.tools.sass import find_program, hot_loop, parse, section

LISTING = """
//--------------------- .text.zigzag_gemv          --------------------------
.text.zigzag_gemv:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E R2, [R4] ;
.L_x_0:
        /*0020*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0030*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0040*/                   IADD3 R0, R0, -0x1, RZ ;
        /*0050*/               @P0 BRA `(.L_x_0) ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
        /*0080*/                   NOP ;
"""


@pytest.fixture
def nvrtc():
    try:
        compiler.nvrtc_version()
    except ZigpassError as error:
        pytest.skip(f"no NVRTC: {error}")


def run(*arguments):
    return CliRunner().invoke(app(), ["inspect-kernel", *arguments], catch_exceptions=False).stdout


@pytest.mark.parametrize("arch", [75, 90])
def test_report(nvrtc, arch):
    report = json.loads(run("1536", "576", "--arch", str(arch), "--group-size", "32", "--json"))
    assert report["layout"] == "zigzag1:4bit:1536x576:in32:sub_int:band1536"
    assert report["macros"]["GROUP"] == 32
    assert report["threads"] == 32 * report["macros"]["ROW_WARPS"] * report["macros"]["COLUMN_WARPS"]
    assert report["spill_bytes"] == 0
    assert 32 <= report["registers"] <= 255
    assert report["blocks_per_sm"] >= report["macros"]["BLOCKS_PER_SM"]
    if find_program() is None:
        pytest.skip("no nvdisasm")
    # A step multiplies 16 columns of 256 rows: 16 tensor-core products, and a few instructions around each.
    assert 40 < report["step_instructions"] < 1000
    assert report["superblock_instructions"] == pytest.approx(report["step_instructions"] * 6 / 16)


def test_table_and_machine_code(nvrtc):
    shown = run("576", "1536")
    assert "registers" in shown
    assert "limited by" in shown
    if find_program() is None:
        pytest.skip("no nvdisasm")
    code = run("576", "1536", "--sass")
    assert "HMMA" in code
    assert ".text.zigzag_gemv:" in code
    assert "zigzag_combine:" not in code


def test_without_a_disassembler_it_is_said(nvrtc, monkeypatch):
    monkeypatch.setattr("zigpass.tools.sass.find_program", lambda: None)
    assert "pip install nvidia-cuda-nvdisasm" in " ".join(run("576", "1536").split())
    with pytest.raises(ZigpassError, match="nvdisasm is not installed: pip install nvidia-cuda-nvdisasm"):
        run("576", "1536", "--sass")


def test_what_is_wrong_is_said():
    with pytest.raises(ZigpassError, match="--arch must be one of 75, 80, 86, 89, 90, 100, 120, got 70"):
        run("576", "1536", "--arch", "70")
    with pytest.raises(ZigpassError, match="--dtype must be one of"):
        run("576", "1536", "--dtype", "int8")
    with pytest.raises(ZigpassError, match="has no kernel of its own"):
        run("576", "1536", "--scale-axis", "out", "--bits", "8")


def test_instructions_of_the_inner_loop():
    listing = section(LISTING, "zigzag_gemv")
    instructions, labels = parse(listing)
    assert len(instructions) == 8
    assert labels == {".L_x_1": 1, ".L_x_0": 2}
    assert hot_loop(listing, products_per_step=1) == 2.0
    assert hot_loop(listing, products_per_step=2) == 4.0
    assert hot_loop(listing, products_per_step=3) is None
    with pytest.raises(ZigpassError, match="no code of other"):
        section(LISTING, "other")


def test_what_the_assembler_prints():
    log = (
        "ptxas info : Compiling entry function 'zigzag_combine'\nFunction properties for zigzag_combine\n"
        "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nUsed 34 registers\n"
        "Function properties for zigzag_gemv\n"
        "8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\nUsed 105 registers, used 1 barriers\n"
    )
    assert read_properties(log) == {"registers": 105, "stores": 4, "loads": 12, "stack": 8}
    with pytest.raises(ZigpassError, match="says nothing about zigzag_gemv"):
        read_properties("")


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "limit"),
    [
        (90, 256, 32, 1024, 8, "threads"),
        (90, 256, 128, 1024, 2, "registers"),
        (90, 128, 32, 100 << 10, 2, "shared memory"),
        (75, 32, 16, 256, 16, "blocks"),
    ],
)
def test_occupancy(arch, threads, registers, shared, blocks, limit):
    found = occupancy(ARCHITECTURES[arch], threads, registers, shared)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.share == blocks * threads / 32 / ARCHITECTURES[arch].warps


def test_bytes_of_a_superblock():
    assert superblock_bytes(Layout(4096, 4096, 4, "in", 128, "sub_int", 1024)) == 512 + 1024 * 3 / 128
    assert superblock_bytes(Layout(4096, 4096, 4, "out", 32, "column", 1024)) == 1024 * 4.5 / 8
