import pytest

from zigpass.runtime.cache_root import cache_root


@pytest.mark.skipif("sys.platform != 'linux'", reason="the folder is another one elsewhere")
def test_it_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZIGPASS_CACHE_DIR", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("ZIGPASS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "zigpass"
