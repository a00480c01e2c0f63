import pytest

from zigpass.resume import StateFile
from zigpass.runtime import ZigpassError

KEY = {"weights": "a", "text": "b"}


def test_finished_measurements_are_there_again(tmp_path):
    path = tmp_path / "state.json"
    state = StateFile(path, KEY)
    state.put("measured", "site", 0.25)
    state.put("teal", "block", [{"site": 0.5}])
    again = StateFile(path, KEY)
    assert again.stage("measured") == {"site": 0.25}
    assert again.stage("teal") == {"block": [{"site": 0.5}]}
    assert again.stage("other") == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_without_a_path_it_is_kept_in_memory():
    state = StateFile(None, KEY)
    state.put("measured", "site", 0.25)
    assert state.stage("measured") == {"site": 0.25}


def test_what_is_kept_is_not_measured_again(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"kl": [0.25]}

    for _ in range(3):
        assert StateFile(tmp_path / "state.json", KEY).keep("scores", "window", measure) == {"kl": [0.25]}
    assert len(calls) == 1


def test_the_state_of_another_calibration_is_refused(tmp_path):
    path = tmp_path / "state.json"
    StateFile(path, KEY).put("measured", "site", 0.25)
    with pytest.raises(ZigpassError, match=r"state.json: the state of another calibration \(text differ\)"):
        StateFile(path, {**KEY, "text": "c"})


@pytest.mark.parametrize(
    "content", ["", "{", "[]\n", '{"version": 2}\n', '{"version": 2, "key": {}}', '{"version": 2, "key": {}}\n3\n']
)
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(ZigpassError, match=r"state.json: not the state of a calibration"):
        StateFile(path, KEY)


def test_a_line_cut_short_costs_that_line_only(tmp_path):
    path = tmp_path / "state.json"
    state = StateFile(path, KEY)
    for site in ("first", "second"):
        state.put("measured", site, 0.25)
    path.write_bytes(path.read_bytes()[:-4])
    again = StateFile(path, KEY)
    assert again.stage("measured") == {"first": 0.25}
    again.put("measured", "third", 0.5)
    assert StateFile(path, KEY).stage("measured") == {"first": 0.25, "third": 0.5}


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "state.json"
    path.write_text('{"version": 7, "key": {}}\n')
    with pytest.raises(ZigpassError, match=r"state file version 7, this zigpass reads version 2"):
        StateFile(path, KEY)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ZigpassError, match=r"none.state.json: cannot keep the state"):
        StateFile(tmp_path / "none" / "state.json", KEY).put("measured", "site", 1.0)
