"""Where files are kept, and how they are written. Imports no torch."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository


def cache_folder() -> Path:
    """The folder of prepared corpora: $QLLK_CACHE, or data/cache next to the package."""
    return Path(os.environ.get("QLLK_CACHE") or ROOT / "data" / "cache")


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
