import pytest

from zigpass.runtime.cuda import tables


@pytest.fixture(autouse=True)
def no_user_tables(request, tmp_path, monkeypatch):
    """What somebody tuned on this machine does not decide what is tested."""
    monkeypatch.setattr(tables, "user_folder", lambda: tmp_path / "tables")
    tables.load_table.cache_clear()
    yield
    tables.load_table.cache_clear()
