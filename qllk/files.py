"""How paths are read and how files are written. Imports no torch."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def user_path(text: str | Path) -> Path:
    """The path that a user writes: `~` is the home folder, `~name` that of the user `name`.

    Raises   ValueError when it is empty, contains a NUL, or names a user without a home folder
    """
    if not str(text) or "\0" in str(text):
        raise ValueError(f"a path must be a text without NUL characters, got {str(text)!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{str(text)!r} names a home folder that is not known here; write the whole path"
        ) from None


def check_writable(path: str | Path) -> Path:
    """Return the path as `user_path` reads it, if a file can be written there; folders are made.

    Raises   ValueError as `user_path`
             OSError when it cannot be written, or is a folder, a device or a pipe
    """
    write_atomically(path, b"", lambda temporary, target: temporary.unlink())
    return user_path(path)


def write_atomically(
    path: str | Path,
    content: bytes | Iterator[bytes],
    finish: Callable[[Path, Path], object] = os.replace,
) -> None:
    """Write a file so that a reader finds either its old content or its new content, whole.

    Links are followed, the file that they lead to keeps its mode, and what killed processes left
    of earlier attempts is removed. `finish` is called with the complete temporary file and the file
    that it is to replace.

    Raises   ValueError as `user_path`
             OSError when it cannot be written, or is read-only, a folder, a device or a pipe; an
             old file is then left as it was
    """
    path = user_path(path)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        if target.is_symlink() or (path.exists() and not path.is_file()):
            raise FileExistsError("it is a folder, a device, a pipe or a circle of links")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError("the file is read-only")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        with open(temporary, "xb") as file:
            file.writelines(content if isinstance(content, Iterator) else [content])
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        if target.exists():
            shutil.copymode(target, temporary)
        finish(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(f"{str(path)!r} cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(target):
    """Remove the temporary files of processes that ended while they wrote `target`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.*.tmp"):
        writer = path.name.split(".")[-3]
        with suppress(OSError, OverflowError):
            if not (writer.isdecimal() and psutil.pid_exists(int(writer))):
                path.unlink()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time be in this context, where the file system has locks of folders."""
    handle = None
    with suppress(OSError):
        if fcntl:
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
