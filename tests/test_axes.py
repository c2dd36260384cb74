"""Numbers in few characters, and round ticks."""

import math

import pytest

from qllk.study.axes import Scale, format_number, ticks


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.01234, "0.012"),
        (-0.5, "-0.5"),
        (1.04, "1.04"),
        (23.46, "23.5"),
        (1234.5, "1,234"),
        (786_432, "786,432"),
        (999_999_999, "1G"),
        (1_048_576, "1.05M"),
        (-2.5e12, "-2.5T"),
        (1e20, "1e20"),
        (3e-7, "3e-7"),
        (math.inf, "inf"),
    ],
)
def test_a_number_is_said_in_few_letters(value, words):
    assert format_number(value) == words


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(1, 1e6, True), (0.8, 1.3, True), (3, 40, True), (0, 7.3, False), (-2, 1e5, False)],
)
def test_ticks_are_round_few_and_inside(low, high, log):
    found = ticks(Scale(low, high, log))
    assert 2 <= len(found) <= 12
    assert all(low <= value <= high for value, _ in found)
    assert len({words for _, words in found}) == len(found)
