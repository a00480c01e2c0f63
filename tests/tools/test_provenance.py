import subprocess

from zigpass.tools import provenance


def test_it_says_versions_and_commit_but_no_folder():
    report = provenance.provenance()
    assert "torch" in report["packages"]
    assert "cache_folder" not in report
    assert report["commit"]


def test_a_copy_without_a_repository_is_told_its_commit(monkeypatch):
    nothing = subprocess.CompletedProcess([], 128, "", "fatal: not a git repository")
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: nothing)
    monkeypatch.setenv("ZIGPASS_COMMIT", "abc1234")
    assert provenance.commit() == "abc1234"
    monkeypatch.delenv("ZIGPASS_COMMIT")
    assert provenance.commit() == "unknown"
