"""How paths are read, and that a failed write loses nothing."""

import pytest

from qllk import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_with_a_tilde_lies_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert files.user_path("~/runs/a") == files.Path("/home/ada/runs/a")
    assert files.user_path("~") == files.Path("/home/ada")
    assert files.user_path("runs/~a") == files.Path("runs/~a")
    assert files.user_path(files.Path("~/a")) == files.Path("/home/ada/a")


@pytest.mark.parametrize("text", ["", "a\0b", "~nobody-of-this-name/a"])
def test_a_path_that_means_nothing_is_refused_in_words(text):
    with pytest.raises(ValueError, match="path"):
        files.user_path(text)
