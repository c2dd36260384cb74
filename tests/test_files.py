"""Where files are kept, and that a failed write loses nothing."""

import pytest

from qllk import files


def test_the_cache_is_where_the_environment_says_or_next_to_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
    monkeypatch.delenv("QLLK_CACHE")
    assert files.cache_folder() == files.ROOT / "data" / "cache"
    assert (files.ROOT / "qllk").is_dir()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
