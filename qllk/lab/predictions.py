"""Predictions: made before a measurement, saved, and compared with the outcome.

They are saved in one JSON file in the learner's own folder, $QLLK_HOME or ~/.qllk. Making a
prediction is optional: every lesson works without.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..files import write_atomically


def predict(key: str, guess: float | str = ...) -> None:
    """Save a guess, a number or a word, before the measurement is made.

        predict("03.growth", 2.0)

    Raises   ValueError when the guess is neither, or the file is damaged
    """
    if guess is ...:
        print(f"{key}: put your guess in place of the dots, or just continue without one")
        return
    if isinstance(guess, bool) or not isinstance(guess, int | float | str):
        raise ValueError(f"a prediction is a number or a word, got {guess!r}")
    _save(key, "predicted", guess)
    print(f"{key}: you predict {guess}")


def outcome(key: str, measured: float | str) -> None:
    """Save what was measured, and compare it with the guess of the same key in one line.

    Raises   ValueError when the file is damaged
    """
    row = _save(key, "measured", measured)
    print(f"{key}: {_compare(row)}")


def expected_and_happened() -> None:
    """The closing page: every prediction next to its measurement, in the order of the lessons."""
    rows = _load()
    if not rows:
        print("nothing predicted and nothing measured yet; the lessons do that")
    for key in sorted(rows):
        print(f"{key:24} {_compare(rows[key])}")


def _path() -> Path:
    folder = os.environ.get("QLLK_HOME") or Path.home() / ".qllk"
    return Path(folder) / "predictions.json"


def _load() -> dict[str, dict]:
    """What was predicted and measured so far, by key.

    Raises   ValueError when the file is damaged; deleting it is the cure
    """
    path = _path()
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {str(key): dict(row) for key, row in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and predict again") from None


def _save(key: str, name: str, value) -> dict:
    rows = _load()
    rows.setdefault(key, {})[name] = value
    try:
        write_atomically(_path(), json.dumps(rows, indent=1).encode())
    except OSError as error:
        print(f"(not saved: {error})")
    return rows[key]


def _compare(row: dict) -> str:
    measured, guess = row.get("measured"), row.get("predicted")
    result = f"measured {_short(measured)}" if measured is not None else "not measured yet"
    if guess is None:
        return f"{result}, no prediction"
    if measured is None:
        return f"you predicted {_short(guess)}, {result}"
    if isinstance(guess, str) or isinstance(measured, str):
        return f"you predicted {guess}, {result}: {'right' if guess == measured else 'different'}"
    if guess and measured and guess * measured > 0:
        ratio = measured / guess
        off = "close" if 0.8 <= ratio <= 1.25 else f"{_short(ratio)} times your guess"
    else:
        off = "close" if abs(measured - guess) < 0.25 else f"{_short(abs(measured - guess))} apart"
    return f"you predicted {_short(guess)}, {result}: {off}"


def _short(value) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
