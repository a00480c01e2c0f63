"""What the host works out for a launch, without a GPU: tiles, columns, shared memory, tables, arguments."""

import ctypes
import dataclasses
import json

import pytest

from zigpass.runtime import Layout, ZigpassError
from zigpass.runtime.cuda import formats, plan, tables
from zigpass.runtime.cuda.arguments import Arguments, Divider, Parameters, Weight
from zigpass.runtime.cuda.device import Device
from zigpass.runtime.cuda.plan import cut_launch, fit_rows
from zigpass.runtime.cuda.specialization import (
    OUT_GROUP,
    Gemv,
    LaunchConfig,
    WeightKind,
    count_tiles,
    count_words,
    max_rows,
)
from zigpass.runtime.cuda.tables import (
    Entry,
    choose_config,
    default_config,
    load_table,
    parse_table,
    read_table,
    shipped_tables,
    write_table,
)

KIND = WeightKind(4, False, 128, formats.F16, formats.U8, 0)


@pytest.mark.parametrize(
    ("n", "band", "tile", "tiles"),
    [(4096, 1024, 1024, 4), (11008, 1024, 1024, 11), (11008, None, 1024, 11), (2700, 384, 256, 15), (1, None, 256, 1)],
)
def test_bands_are_cut_into_tiles(n, band, tile, tiles):
    layout = Layout(n, 64, 4, "in", 32, "sub_int", -(-n // 128) * 128).with_band(band)
    assert count_tiles(layout, tile) == tiles


@pytest.mark.parametrize(
    ("k", "group", "words"), [(4096, 128, 128), (100, 48, 5), (1000, 1000, 32), (33, OUT_GROUP, 2), (515, 128, 17)]
)
def test_groups_are_padded_to_words_of_32_columns(k, group, words):
    assert count_words(k, group) == words


def test_a_chunk_is_as_large_as_is_useful_and_fits():
    gemv = Gemv(KIND, LaunchConfig(4, 4, 1, 2), formats.BF16, formats.BF16, True, 1)
    small, large = gemv.fit(434, 227 << 10), gemv.fit(100_000, 227 << 10)
    assert small is not None
    assert large is not None
    assert small.config.chunk == 512
    assert large.config.chunk == 29 * 128  # a unit for every lane but the three that the ends of pieces cut
    assert small.shared_bytes < large.shared_bytes <= 227 << 10
    tight = gemv.fit(100_000, 64 << 10)
    assert tight is not None
    assert tight.config.chunk < 4096
    assert tight.config.column_warps == 4
    narrow = gemv.fit(100_000, 24 << 10)
    assert narrow is not None
    assert narrow.config.column_warps < 4
    assert gemv.fit(100_000, 4 << 10) is None


def test_warps_past_the_end_of_a_band_go_to_the_columns():
    config = LaunchConfig(4, 4, 1, 2)
    assert fit_rows(config, KIND, 1024) == config
    assert fit_rows(config, KIND, 128) == dataclasses.replace(config, row_warps=1, column_warps=16)
    assert fit_rows(config, KIND, 512) == dataclasses.replace(config, row_warps=2, column_warps=8)


def test_every_shipped_entry_fills_at_most_the_registers_of_a_multiprocessor():
    assert 90 in shipped_tables()
    for arch in shipped_tables():
        for entry in load_table(arch):
            assert entry.config.threads * entry.config.blocks_per_sm <= 512
            assert entry.config.threads <= 1024


def test_a_shape_takes_the_nearest_entry_of_its_kind():
    shipped = {(entry.scale_axis, entry.n, entry.k): entry.config for entry in load_table(90)}
    assert choose_config(90, KIND, 1, 4096, 4096) == shipped["in", 4096, 4096]
    assert choose_config(90, KIND, 1, 4000, 5000) == shipped["in", 4096, 4096]
    assert choose_config(90, KIND, 1, 30000, 4096) == shipped["in", 28672, 4096]
    out = WeightKind(4, True, OUT_GROUP, 0, 0, 0)
    assert choose_config(90, out, 1, 4096, 4096) == shipped["out", 4096, 4096] != shipped["in", 4096, 4096]
    eight = dataclasses.replace(KIND, bits=8)
    assert choose_config(90, eight, 1, 4096, 4096) == default_config(8, False, 1)
    assert choose_config(75, KIND, 1, 4096, 4096) == default_config(4, False, 1)


def test_a_table_that_is_none_is_refused_by_name():
    with pytest.raises(ZigpassError, match=r"sm_00\.json is not a launch table"):
        parse_table({"entries": [{"bits": 4}]}, "sm_00.json")
    assert parse_table({"entries": []}, "sm_00.json") == ()
    entry = Entry(4, "in", 1, 8, 8, LaunchConfig(1, 1, 1, 1))
    plain = dataclasses.asdict(entry)
    del plain["break_even"]  # a table of before it was measured
    assert parse_table({"entries": [plain]}, "sm_00.json") == (entry,)


def test_break_even_is_read_and_written():
    config = LaunchConfig(1, 1, 1, 1)
    entries = [Entry(4, "in", 1, n, 8, config, even) for n, even in ((8, None), (16, 0.25), (32, tables.NEVER))]
    path = tables.user_folder() / "sm_90.json"
    write_table(path, entries, "a GPU", "a test")
    assert read_table(path) == tuple(entries)
    plain = json.loads(path.read_text())["entries"]
    assert ["break_even" in entry for entry in plain] == [False, True, True]
    assert [entry.get("break_even") for entry in plain] == [None, 0.25, None]
    with pytest.raises(ZigpassError, match="is not a launch table"):
        parse_table({"entries": [plain[0] | {"break_even": "often"}]}, "sm_00.json")


def test_a_shape_that_sparsity_never_helps_is_launched_dense(monkeypatch):
    """Its very shape only: what is near it may differ."""
    config = LaunchConfig(4, 4, 1, 2)
    entries = [
        Entry(4, "in", 1, 4096, 4096, config, tables.NEVER),
        Entry(4, "in", 1, 8192, 4096, config, 0.4),
        Entry(4, "in", 1, 1024, 4096, config),
    ]
    write_table(tables.user_folder() / "sm_90.json", entries, "a GPU", "a test")
    monkeypatch.setattr(plan, "get_device", lambda index: H200)
    monkeypatch.setattr(plan, "get_function", lambda *args, **kwargs: None)

    def is_sparse(n, k, sparse=True, config=None, weights=1, axis_out=False):
        kind = WeightKind(4, True, OUT_GROUP, 0, 0, 0) if axis_out else KIND
        specs = (layout(n, k, 1024).spec,) * weights
        wrapped = plan.get_plan.__wrapped__
        return wrapped(0, kind, specs, formats.BF16, formats.BF16, sparse, 1, config=config).gemv.sparse

    assert not is_sparse(4096, 4096)
    assert not is_sparse(2048, 4096, weights=2)
    assert is_sparse(4096, 4096, config=config)
    assert is_sparse(4096, 4096, axis_out=True)
    assert is_sparse(4096, 4224)
    assert is_sparse(8192, 4096)
    assert is_sparse(1024, 4096)
    assert not is_sparse(8192, 4096, sparse=False)


def test_arguments_keep_c_types():
    assert ctypes.sizeof(Weight) == 80
    assert ctypes.sizeof(Arguments) == 392
    arguments = Arguments()
    with pytest.raises(TypeError):
        arguments.k = 1.5
    parameters = Parameters((1, 2, 3, 4), (5, 6, 7, 8, 9))
    addresses = (ctypes.c_void_p * 9).from_address(parameters.address)
    assert [ctypes.c_void_p.from_address(address).value for address in addresses[:4]] == [1, 2, 3, 4]
    assert [ctypes.c_int32.from_address(address).value for address in addresses[4:]] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 128, 641, 4095, 4096, 65537, 2**30 + 1, 2**31 - 1])
def test_a_divider_divides_as_the_kernel_does(divisor):
    d = Divider.of(divisor)
    near = [
        n for multiple in (1, 2, 1000, 2**31 // divisor) for n in range(multiple * divisor - 2, multiple * divisor + 2)
    ]
    for n in [0, 1, 12345, 2**30, 2**31 - 1, *(n for n in near if 0 <= n < 2**31)]:
        quotient = n if d.value == 1 else (n * d.multiplier >> 32) >> d.shift
        assert quotient == n // divisor


H200 = Device(0, "a GPU", 90, 132, 227 << 10)


def layout(n, k, band=None):
    return Layout(n, k, 4, "in", 128, "sub_int", -(-n // 128) * 128).with_band(band)


def test_a_launch_is_cut_into_one_wave():
    wanted = Gemv(KIND, LaunchConfig(1, 1, 1, 1), formats.BF16, formats.NONE, True, 1)
    cut = cut_launch(H200, wanted, [layout(11008, 4096, 1024)] * 2, LaunchConfig(4, 4, 1, 2))
    assert (cut.blocks, cut.tiles, cut.words, cut.gemv.config.chunk) == (132, (11, 11), 128, 1024)
    small = cut_launch(H200, wanted, [layout(128, 64)], LaunchConfig(4, 4, 1, 2))
    assert (small.blocks, small.tiles, small.gemv.config.row_warps) == (1, (1,), 1)


@pytest.mark.parametrize(("n", "rows"), [(4096, 32), (8192, 64), (28672, 128)])
def test_adding_up_takes_one_wave_of_few_rows_each(n, rows):
    wanted = Gemv(KIND, LaunchConfig(1, 1, 1, 1), formats.BF16, formats.BF16, True, 1)
    assert cut_launch(H200, wanted, [layout(n, 4096, 1024)], LaunchConfig(4, 4, 1, 2)).gemv.combined_rows == rows


def test_what_no_launch_takes_is_refused():
    wanted = Gemv(KIND, LaunchConfig(1, 1, 1, 1), formats.BF16, formats.BF16, True, 1)
    with pytest.raises(ZigpassError, match="too large for one launch"):
        cut_launch(H200, wanted, [layout(1 << 20, 1 << 20)], LaunchConfig(4, 4, 1, 2))
    tiny = dataclasses.replace(H200, shared_limit=8 << 10)
    with pytest.raises(ZigpassError, match="scales of 1024 rows do not fit 8192 bytes of shared memory"):
        cut_launch(tiny, wanted, [layout(4096, 4096)], LaunchConfig(4, 4, 1, 2))


def test_the_users_table_goes_before_the_shipped_one():
    path = tables.user_folder() / "sm_90.json"
    mine, later = LaunchConfig(2, 2, 2, 2), LaunchConfig(1, 8, 2, 2)
    write_table(path, [Entry(4, "in", 1, 4096, 4096, mine)], "a GPU", "a test")
    assert choose_config(90, KIND, 1, 4096, 4096) == mine
    assert choose_config(90, KIND, 1, 28672, 4096) != mine
    write_table(path, [Entry(4, "in", 1, 4096, 4096, later), Entry(4, "in", 1, 64, 64, mine)], "a GPU", "again")
    assert [entry.config for entry in read_table(path)] == [later, mine]
    assert choose_config(90, KIND, 1, 4096, 4096) == later


def test_a_broken_user_table_is_refused_with_the_way_out():
    path = tables.user_folder() / "sm_90.json"
    path.parent.mkdir()
    path.write_text("no json")
    with pytest.raises(ZigpassError, match=r"sm_90\.json is not a launch table: .*; delete it or run zigpass tune"):
        choose_config(90, KIND, 1, 4096, 4096)


def test_rows_of_a_launch():
    assert [max_rows(bits, 90) for bits in (2, 4, 8)] == [2, 4, 4]
    assert [max_rows(bits, 75) for bits in (2, 4, 8)] == [1, 2, 2]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_thread_map_covers_each_row_of_a_warp_once_and_agrees_with_the_layout(bits):
    """`tile_row` of columns_in.cuh: lane (g, t), word i and field f of its 16 bytes."""
    depth, lanes_per_block, fields = 4 * bits, bits, 32 // bits
    rows = {}
    for g in range(8):
        block, lane = divmod(g, lanes_per_block)
        for i in range(4):
            for f in range(fields):
                row = block * 128 + f * depth + 4 * lane + i
                assert row not in rows
                rows[row] = (g, i, f)
                assert (row % 128 // depth, row % 128 % depth) == (f, 4 * lane + i)
    assert sorted(rows) == list(range(1024 // bits))
