"""How paths are read and how files are written. Imports no torch."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds either its old content or its new content, whole.

    Raises   OSError when it cannot be written; an old file is then left as it was
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
