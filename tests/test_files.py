"""How paths are read, and that a failed write loses nothing."""

import os
import socket
import subprocess
import sys

import pytest

from qllk import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    files.write_atomically(path, b"old")
    monkeypatch.setattr(files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match=r"file\.bin' cannot be written: full"):
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


def test_a_path_with_a_tilde_is_written_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files.write_atomically("~/sub/a", b"new")
    assert (tmp_path / "sub" / "a").read_bytes() == b"new"


def test_a_link_is_written_through_and_the_file_keeps_its_mode(tmp_path):
    real, link, second = tmp_path / "real", tmp_path / "sub" / "link", tmp_path / "second"
    link.parent.mkdir()
    real.write_bytes(b"old")
    real.chmod(0o664)
    link.symlink_to("../real")
    second.symlink_to(link)
    files.write_atomically(second, b"new")
    assert (real.read_bytes(), real.stat().st_mode & 0o777) == (b"new", 0o664)
    assert link.is_symlink()
    assert second.is_symlink()
    assert sorted(tmp_path.rglob("*")) == sorted([real, link.parent, link, second])


def test_a_link_to_a_file_that_is_not_there_yet_makes_that_file(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("later")
    files.write_atomically(link, b"new")
    assert (tmp_path / "later").read_bytes() == b"new"
    assert link.is_symlink()


def something_else(kind, path):
    """Anything that can stand under a name, except a file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle of links":
        path.symlink_to(path)
    else:
        path.symlink_to("/dev/null")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "circle of links", "device"])
@pytest.mark.parametrize("write", [files.write_atomically, lambda p, _: files.check_writable(p)])
def test_what_is_not_a_file_is_never_replaced(tmp_path, monkeypatch, kind, write):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    path = files.Path("other")
    something_else(kind, path)
    before = os.lstat(path), os.stat("/dev/null").st_rdev
    with pytest.raises(FileExistsError, match=r"'other' cannot be written: it is a folder, a dev"):
        write(path, b"new")
    after = os.lstat(path), os.stat("/dev/null").st_rdev
    assert (before[0].st_mode, before[0].st_ino, before[1]) == (
        after[0].st_mode,
        after[0].st_ino,
        after[1],
    )
    assert os.listdir() == ["other"]


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="run' cannot be written: the file is read-only"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("path", ["text/x", "text/x/y", "a" * 300, "/proc/none/x"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    files.Path("text").write_bytes(b"old")
    for write in (files.write_atomically, lambda p, _: files.check_writable(p)):
        with pytest.raises(OSError, match=f"'{path}' cannot be written: "):
            write(path, b"new")
    assert os.listdir() == ["text"]


def test_checking_a_path_changes_no_file(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    assert files.check_writable(path) == path
    assert files.check_writable(tmp_path / "new") == tmp_path / "new"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_by_the_next_write_and_what_others_write_is_not(
    tmp_path,
):
    path = tmp_path / "run[1].x"
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        pass
    left, hers = (tmp_path / f".{path.name}.{n}.0123abcd.tmp" for n in (child.pid, os.getppid()))
    odd = tmp_path / f".{path.name}.{10**30}.0123abcd.tmp"
    for file in (left, hers, odd):
        file.write_bytes(b"half")
    files.write_atomically(path, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([hers, odd, path])


FULL = """
import resource, signal, sys
from qllk import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
files.write_atomically(sys.argv[1], bytes(10_000))
"""


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "run"
    path.write_bytes(b"old")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", FULL, path], env=env, capture_output=True, text=True, check=False
    )
    assert f"OSError: {str(path)!r} cannot be written: File too large" in child.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
