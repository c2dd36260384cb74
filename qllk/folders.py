"""Where qllk keeps its files. Imports no torch.

                        chosen by      in a clone     installed
    prepared texts      $QLLK_CACHE    data/cache     the user's folder for caches
    a learner's work    $QLLK_HOME     ~/.qllk        the user's folder for data, or an old ~/.qllk

Where no file can be written, a temporary folder takes the place, and one sentence says so.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import platformdirs

from .files import user_path

PACKAGE = Path(__file__).resolve().parent
CLONE = PACKAGE.parent if (PACKAGE.parent / "notebooks" / "00_lab.ipynb").is_file() else None


def cache_folder() -> Path:
    """The folder into which prepared texts are written."""
    return _first_writable(_caches(), "QLLK_CACHE")


def cache_file(name: str) -> Path:
    """A file of the cache: where it can be read already, or else where it can be written."""
    places = [folder / name for folder in _caches()]
    readable = [path for path in places if os.access(path, os.R_OK)]
    return readable[0] if readable else cache_folder() / name


def _caches() -> list[Path]:
    """The folders that may hold prepared texts, the preferred one first."""
    if chosen := os.environ.get("QLLK_CACHE"):
        return [user_path(chosen)]
    own = _of_user(platformdirs.user_cache_path)
    return [CLONE / "data" / "cache", own] if CLONE else [own]


def learner_folder() -> Path:
    """The folder of what a learner predicted, answered and wrote."""
    if chosen := os.environ.get("QLLK_HOME"):
        return _first_writable([user_path(chosen)], "QLLK_HOME")
    own = Path(os.path.expanduser("~/.qllk"))
    if not CLONE and not os.path.isdir(own):
        own = _of_user(platformdirs.user_data_path)
    return _first_writable([own], "QLLK_HOME")


def provide_home() -> None:
    """Let Jupyter work for a user without a home folder, or with one that cannot be written to."""
    os.environ["HOME"] = str(_first_writable([Path(os.path.expanduser("~"))], "HOME"))


def _of_user(find: Callable[..., Path]) -> Path:
    """A folder of this user, or ~ for a user whose home is not known."""
    with contextlib.suppress(RuntimeError):
        return find("qllk", appauthor=False)
    return Path("~")


def _first_writable(folders: list[Path], variable: str) -> Path:
    """The first folder that takes a file, or a temporary one."""
    reasons = []
    for folder in folders:
        reasons.append(_refusal(folder))
        if reasons[-1] is None:
            return folder
    return Path(_temporary(variable, folders[0], reasons[0]).name)


def _refusal(folder: Path) -> str | None:
    """Why no file can be created in a folder, or None; tried, because permissions do not tell."""
    if folder.parts[:1] == ("~",):
        return "this user has no home folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


@cache
def _temporary(variable: str, wanted: Path, reason: str) -> tempfile.TemporaryDirectory:
    """A folder that is deleted at the end of the process; the first caller is told."""
    folder = tempfile.TemporaryDirectory(prefix="qllk-", ignore_cleanup_errors=True)
    print(
        f"qllk: {wanted} cannot be written to ({reason}), so {folder.name} takes its place until "
        f"this process ends. Set {variable} to a folder of your own to keep what is written.",
        file=sys.stderr,
    )
    return folder
