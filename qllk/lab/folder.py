"""What is in the learner's folder: one table of what was predicted, answered and tried, and the
functions that passed their checks. Every lesson works without it: what cannot be read or saved is
said, and lasts for the session.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import UnionType

from filelock import FileLock

from ..files import write_atomically
from ..folders import learner_folder

Fact = str | int | float | bool
Row = dict[str, Fact]

_TABLE = "progress.json"
_MOST_BYTES = 1 << 28  # of a file that is read
_MOST_LETTERS = 200  # of a word
_LOCK_SECONDS = 10.0  # how long to wait for another process
_KINDS = {  # of the facts that are computed with
    "predicted": str | int | float,
    "measured": str | int | float,
    "answer": str,
    "right": bool,
    "verdict": str,
    "tries": int,
    "hints": int,
    "solution": bool,
}
_unsaved: dict[str, Row] = {}  # rows that could not be written so far


@contextmanager
def locked() -> Iterator[None]:
    """Keep other processes from changing the folder during a change that reads and writes.

    Raises   OSError when another process holds it for too long
    """
    with FileLock(learner_folder() / ".lock", timeout=_LOCK_SECONDS):
        yield


def read(name: str) -> bytes | None:
    """The content of a file of the folder; None if there is none.

    Raises   ValueError when it is not a file, is too large, or cannot be read
    """
    path = learner_folder() / name
    try:
        facts = path.stat()
        if stat.S_ISREG(facts.st_mode) and facts.st_size <= _MOST_BYTES:
            return path.read_bytes()
        problem = f"is not a file of at most {_MOST_BYTES >> 20} MiB"
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise ValueError(f"{path} {problem}; move it away, or set QLLK_HOME to another folder")


def save(name: str, content: str | bytes) -> None:
    """Write a file of the folder; a folder that cannot be written to stops no lesson."""
    content = content.encode() if isinstance(content, str) else content
    try:
        write_atomically(learner_folder() / name, content)
    except (OSError, ValueError) as error:
        print(f"(not saved: {error})")


# ---------------------------------------------------------------- the table


def read_table() -> dict[str, Row]:
    """A row for each key: a prediction, a question or an exercise.

    A file that cannot be read is named, and left out.
    """
    try:
        return _with_unsaved(_read_table())
    except ValueError as error:
        print(f"({error})")
        return _with_unsaved({})


def write_row(key: str, **facts: Fact) -> Row:
    """Add facts to the row of a key, and return the row."""
    return update_row(key, lambda row: facts)


def update_row(key: str, change: Callable[[Row], Row]) -> Row:
    """Add the facts `change(row)` to the row of a key, and return the row.

    Processes that do so at once wait for each other. What cannot be saved is said, lasts for the
    session, and is saved with the next row that can be.
    """

    row = None
    try:
        with locked():
            table = _with_unsaved(_read_table())
            row = table[key] = _changed(table, key, change)
            write_atomically(learner_folder() / _TABLE, json.dumps(table, indent=1).encode())
        _unsaved.clear()
    except (OSError, ValueError) as error:
        print(f"(not saved: {error})")
        row = _unsaved[key] = row or _changed(_with_unsaved({}), key, change)
    return row


def _changed(table, key, change) -> Row:
    row = table.get(key, {})
    return row | change(row)


def _with_unsaved(table) -> dict[str, Row]:
    return table | {key: table.get(key, {}) | row for key, row in _unsaved.items()}


def _read_table() -> dict[str, Row]:
    """Raises   ValueError when the file is damaged; deleting it is the cure"""
    content = read(_TABLE)
    if content is None:
        return {}
    try:
        found = json.loads(content)
        for key, row in found.items():
            odd = [name for name, fact in row.items() if not is_fact(fact, _KINDS.get(name, Fact))]
            if odd or not is_fact(key):
                raise ValueError(f"in the row {key[:40]!a}")
        return found
    except (ValueError, AttributeError, RecursionError) as error:
        path = learner_folder() / _TABLE
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from None


def is_fact(value: object, kind: type | UnionType = Fact) -> bool:
    """Whether a value is of the kind, and no huge number or text that cannot be printed."""
    if isinstance(value, str):
        plain = 0 < len(value) <= _MOST_LETTERS and value.isprintable()
    else:
        plain = isinstance(value, float) or (isinstance(value, int) and abs(value) <= 10**300)
    return plain and isinstance(value, kind)
