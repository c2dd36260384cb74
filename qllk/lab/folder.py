"""What is in the learner's folder: one table of what was predicted, answered and tried, and the
functions that passed their checks. Every lesson works without it.
"""

from __future__ import annotations

import json

from ..files import write_atomically
from ..folders import learner_folder

Row = dict[str, str | int | float | bool]


def read_table() -> dict[str, Row]:
    """A row for each key: a prediction, a question or an exercise.

    Raises   ValueError when the file is damaged; deleting it is the cure
    """
    path = learner_folder() / "progress.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {str(key): dict(row) for key, row in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from None


def write_row(key: str, **facts: str | int | float | bool) -> Row:
    """Add facts to the row of a key, and return the row.

    Raises   ValueError when the file is damaged
    """
    table = read_table()
    row = table[key] = table.get(key, {}) | facts
    save("progress.json", json.dumps(table, indent=1))
    return row


def save(name: str, content: str | bytes) -> None:
    """Write a file of the folder; a folder that cannot be written to stops no lesson."""
    content = content.encode() if isinstance(content, str) else content
    try:
        write_atomically(learner_folder() / name, content)
    except OSError as error:
        print(f"(not saved: {error})")
