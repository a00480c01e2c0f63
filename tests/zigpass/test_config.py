import pytest

from zigpass.config import ZigzagConfig
from zigpass.runtime import ZigpassError


def test_json_reads_back():
    config = ZigzagConfig(bits=8, group_size=64, scale_axis="out", method="rtn", scale_dtype="bfloat16", band=256)
    assert ZigzagConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["{", '{"bitz": 4}', "[1]"])
def test_other_json_is_refused(text):
    with pytest.raises(ZigpassError, match="not a ZigzagConfig"):
        ZigzagConfig.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 3),
        ("scale_axis", "both"),
        ("group_size", 0),
        ("group_size", 32.0),
        ("method", "awq"),
        ("scale_dtype", "float64"),
        ("band", 100),
        ("band", 0),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ZigpassError, match=f"{field} must be .*got {value!r}"):
        ZigzagConfig(**{field: value})


def test_short_group():
    assert ZigzagConfig(group_size=128).short_group(576) == 64
    assert ZigzagConfig(group_size=128).short_group(1536) == 0
    assert ZigzagConfig(group_size=128).short_group(64) == 0
    assert ZigzagConfig(scale_axis="out").short_group(577) == 0
