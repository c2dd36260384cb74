"""Predictions: made before a measurement, kept, and compared with it.

They live in the learner's own folder, as one JSON file: $QLLK_HOME, or ~/.qllk. An unanswered
prediction stops nothing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..files import write_atomically

FILE = "predictions.json"


def folder() -> Path:
    """Where what a learner does is kept."""
    return Path(os.environ.get("QLLK_HOME") or Path.home() / ".qllk")


def kept() -> dict[str, dict]:
    """Everything predicted and measured so far, by key.

    Raises   ValueError when the file is damaged; deleting it is the cure
    """
    path = folder() / FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {str(key): dict(row) for key, row in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and predict anew") from None


def _keep(key: str, name: str, value) -> dict:
    rows = kept()
    rows.setdefault(key, {})[name] = value
    try:
        write_atomically(folder() / FILE, json.dumps(rows, indent=1).encode())
    except OSError as error:
        print(f"(not kept: {error})")
    return rows[key]


def predict(key: str, guess=...) -> None:
    """Keep a guess, a number or a word, before the measurement is made.

    predict("03.growth", 2.0)
    """
    if guess is ...:
        print(f"{key}: put your guess in place of the dots; the lesson goes on without one, too")
        return
    if isinstance(guess, bool) or not isinstance(guess, int | float | str):
        raise ValueError(f"a prediction is a number or a word, got {guess!r}")
    _keep(key, "predicted", guess)
    print(f"{key}: you predict {guess}")


def outcome(key: str, measured) -> None:
    """Compare what was measured with the guess kept under the same key, in one line."""
    row = _keep(key, "measured", measured)
    print(f"{key}: {_verdict(row)}")


def _verdict(row: dict) -> str:
    measured, guess = row.get("measured"), row.get("predicted")
    said = f"measured {_short(measured)}" if measured is not None else "not measured yet"
    if guess is None:
        return f"{said}, no prediction"
    if measured is None:
        return f"you predicted {_short(guess)}, {said}"
    if isinstance(guess, str) or isinstance(measured, str):
        return f"you predicted {guess}, {said}: {'right' if guess == measured else 'not so'}"
    if guess and measured and guess * measured > 0:
        ratio = measured / guess
        off = "close" if 0.8 <= ratio <= 1.25 else f"{_short(ratio)} times your guess"
    else:
        off = "close" if abs(measured - guess) < 0.25 else f"{_short(abs(measured - guess))} apart"
    return f"you predicted {_short(guess)}, {said}: {off}"


def _short(value) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def expected_and_happened() -> None:
    """The closing page: every prediction beside its measurement, in the order of the lessons."""
    rows = kept()
    if not rows:
        print("nothing predicted and nothing measured yet; the lessons do that")
    for key in sorted(rows):
        print(f"{key:24} {_verdict(rows[key])}")
