"""Predictions: made before a measurement, saved, and compared with the outcome.

They are saved in the learner's folder. Making a prediction is optional: every lesson works without.
"""

from __future__ import annotations

import reprlib
from contextlib import suppress

from .folder import Row, is_fact, read_table, write_row


def predict(key: str, guess: float | str = ...) -> None:
    """Save a guess, a number or a word, before the measurement is made.

        predict("03.growth", 2.0)

    Numbers of numpy and torch are numbers too.

    Raises   ValueError when the guess or the key is neither
    """
    if guess is ...:
        print(f"{key}: put your guess in place of the dots, or just continue without one")
        return
    guess = _plain("a prediction", guess)
    write_row(_plain("a key", key, str), predicted=guess)
    print(f"{key}: you predict {guess}")


def outcome(key: str, measured: float | str) -> None:
    """Save what was measured, and compare it with the guess of the same key in one line.

    Raises   ValueError when the measured value is neither a number nor a word
    """
    measured = _plain("a measurement", measured)
    row = write_row(_plain("a key", key, str), measured=measured)
    print(f"{key}: {compare(row)}")


def expected_and_happened() -> None:
    """The closing page: every prediction next to its measurement, in the order of the lessons."""
    rows = {key: row for key, row in read_table().items() if row.keys() & {"predicted", "measured"}}
    if not rows:
        print("nothing predicted and nothing measured yet; the lessons do that")
    for key in sorted(rows):
        print(f"{key:24} {compare(rows[key])}")


def compare(row: Row) -> str:
    """A prediction and its measurement in words."""
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


def _plain(what, value, kind=int | float | str):
    """The value as Python's own number, or a word."""
    with suppress(ValueError, RuntimeError, TypeError):  # an array, or not a number at all
        value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not is_fact(value, kind):
        wanted = "a short word" if kind is str else "a number or a short word"
        raise ValueError(f"{what} is {wanted}, got {reprlib.repr(value)}")
    return value


def _short(value) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
