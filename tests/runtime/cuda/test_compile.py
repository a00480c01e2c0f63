"""Every kernel compiles for every supported architecture, without local memory; needs NVRTC and no GPU."""

import dataclasses
import re

import pytest

from zigpass.runtime import ZigpassError
from zigpass.runtime.cuda import compiler, formats
from zigpass.runtime.cuda.specialization import OUT_GROUP, Gemv, LaunchConfig, WeightKind, max_rows
from zigpass.runtime.cuda.tables import default_config, load_table, shipped_tables

ARCHS = (75, 80, 86, 89, 90, 100, 120)
SHARED_LIMIT = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory a block may take, from the CUDA programming guide's table of compute capabilities."""

GROUP_4 = WeightKind(4, False, 128, formats.F16, formats.U8, 0)


@pytest.fixture(scope="module", autouse=True)
def nvrtc():
    try:
        compiler.nvrtc_version()
    except ZigpassError as error:
        pytest.skip(f"no NVRTC: {error}")


def one_row(kind, x_format=formats.BF16, out_format=formats.BF16, sparse=True, config=None, **rest):
    config = config or default_config(kind.bits, kind.scale_axis_out, 1)
    return Gemv(kind, config, x_format, out_format, sparse, 1, **rest)


def specializations(arch):
    """Name and specialization of what the launcher selects by default, each idea of the source at least once."""
    yield "linear", one_row(GROUP_4)
    yield "linear dense", one_row(GROUP_4, sparse=False)
    yield "gate and up", one_row(GROUP_4, out_format=formats.NONE)
    for name, code in formats.ACTIVATION_CODES.items():
        yield f"down {name}", one_row(GROUP_4, x_format=formats.NONE, has_gate=code % 2 == 0, activation=code)
    float_zero = WeightKind(4, False, 32, formats.BF16, formats.BF16, 1)
    yield "float zero, group 32", one_row(float_zero, formats.F32, formats.F32)
    yield (
        "added zero, group 48",
        one_row(WeightKind(4, False, 48, formats.F32, formats.F32, 2), formats.F16, formats.F16),
    )
    yield "permuted, down", one_row(dataclasses.replace(GROUP_4, permuted=True), x_format=formats.NONE, has_gate=True)
    yield "one group", one_row(WeightKind(4, False, 4096, formats.F16, formats.U8, 0))
    for bits in (2, 8):
        yield f"{bits} bits", one_row(dataclasses.replace(GROUP_4, bits=bits))
    out = WeightKind(4, True, OUT_GROUP, 0, 0, 0)
    yield "column scales", one_row(out)
    yield "column scales, down", one_row(out, x_format=formats.NONE, has_gate=True)
    for bits in (2, 4, 8):
        for rows in (2, 4):
            if rows <= max_rows(bits, arch):
                config = default_config(bits, False, rows)
                kind = dataclasses.replace(GROUP_4, bits=bits)
                yield f"{rows} rows, {bits} bits", Gemv(kind, config, formats.BF16, formats.BF16, False, rows)


def table_specializations():
    """What the shipped tables select, on their own architecture."""
    for arch in shipped_tables():
        for entry in load_table(arch):
            out = entry.scale_axis == "out"
            kind = WeightKind(4, True, OUT_GROUP, 0, 0, 0) if out else dataclasses.replace(GROUP_4, bits=entry.bits)
            formats_of_use = ((formats.BF16, formats.BF16), (formats.BF16, formats.NONE), (formats.NONE, formats.BF16))
            for x_format, out_format in formats_of_use if entry.rows == 1 else formats_of_use[:1]:
                yield arch, Gemv(kind, entry.config, x_format, out_format, entry.rows == 1, entry.rows, True)


def assert_no_spills(gemv, arch):
    fitted = gemv.fit(4096, SHARED_LIMIT[arch] * 1024 // gemv.config.blocks_per_sm - 1024)
    assert fitted is not None, f"no chunk fits {SHARED_LIMIT[arch]} KiB"
    code, log = compiler.compile_verbose("gemv.cu", fitted.macros, arch)
    assert bytes(code.code)[:4] == b"\x7fELF"
    spills = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", log)]
    assert spills, f"the assembler says nothing about spills: {log}"
    assert max(spills) == 0, log


@pytest.mark.parametrize(
    ("arch", "gemv"),
    [pytest.param(arch, gemv, id=f"sm_{arch}-{name}") for arch in ARCHS for name, gemv in specializations(arch)],
)
def test_gemv_compiles_without_spills(arch, gemv):
    assert_no_spills(gemv, arch)


def test_table_entries_compile_without_spills():
    for arch, gemv in {(arch, gemv) for arch, gemv in table_specializations()}:
        assert_no_spills(gemv, arch)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis_out", [0, 1])
def test_dequantize_compiles_without_spills(arch, bits, axis_out):
    macros = {
        "BITS": bits,
        "SCALE_AXIS_OUT": axis_out,
        "GROUP": 64,
        "SCALE_FORMAT": formats.F16,
        "ZERO_FORMAT": formats.U8,
        "ZERO_KIND": 0,
        "OUT_FORMAT": formats.BF16,
    }
    _, log = compiler.compile_verbose("dequantize.cu", macros, arch)
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", log), log


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("piece", [128, 256, 512])
def test_gather_compiles_without_spills(arch, piece):
    _, log = compiler.compile_verbose("gather.cu", {"PIECE": piece, "AT_ONCE": 8}, arch)
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", log), log


def test_an_old_gpu_is_refused_with_the_way_out():
    with pytest.raises(ZigpassError, match=r"7\.5 or later, this one is 7\.0; keep the model on the CPU"):
        compiler.compile_kernel("dequantize.cu", {}, 70)


def test_a_compiler_error_names_the_macros_and_the_message():
    with pytest.raises(ZigpassError, match=r"(?s)gemv\.cu for sm_90 with \{'BITS': 4\}.*error"):
        compiler.compile_kernel("gemv.cu", {"BITS": 4}, 90)


def test_the_cache_returns_the_same_code_without_compiling(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", str(tmp_path))
    compiler.program_cache.cache_clear()
    caplog.set_level("INFO", logger=compiler.__name__)
    macros = one_row(GROUP_4, config=LaunchConfig(1, 1, 1, 2, 256)).macros
    first = bytes(compiler.compile_kernel("gemv.cu", macros, 90).code)
    assert [record.message.split(" in ")[0] for record in caplog.records] == ["compiled gemv.cu for sm_90"]
    caplog.clear()
    assert bytes(compiler.compile_kernel("gemv.cu", macros, 90).code) == first
    assert not caplog.records
    assert any(path.is_file() for path in tmp_path.rglob("*"))
    compiler.program_cache.cache_clear()


def test_an_unusable_cache_folder_is_said_once_and_compiles_anyway(tmp_path, monkeypatch, caplog):
    (tmp_path / "cubin").write_text("a file where the folder should be")
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", str(tmp_path))
    compiler.program_cache.cache_clear()
    macros = one_row(GROUP_4, config=LaunchConfig(1, 1, 1, 2, 256)).macros
    compiler.compile_kernel("gemv.cu", macros, 90)
    assert sum("cannot be used as a kernel cache" in record.message for record in caplog.records) == 1
    compiler.program_cache.cache_clear()
