"""Predictions are saved, and compared with what was measured."""

import json

import pytest

from qllk.lab import expected_and_happened, outcome, predict


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    return tmp_path / "progress.json"


def said(capsys):
    return capsys.readouterr().out.strip()


def test_a_prediction_waits_on_disk_for_its_outcome(capsys, home):
    predict("03.growth", 2.0)
    assert json.loads(home.read_text()) == {"03.growth": {"predicted": 2.0}}
    outcome("03.growth", 2.1)
    assert said(capsys).splitlines() == [
        "03.growth: you predict 2.0",
        "03.growth: you predicted 2, measured 2.1: close",
    ]


@pytest.mark.parametrize(
    ("guess", "measured", "verdict"),
    [
        (10, 100, "10 times your guess"),
        (100, 10, "0.1 times your guess"),
        (0, 0.1, "close"),
        (0, 3, "3 apart"),
        (-1, 1, "2 apart"),
        ("kernel", "kernel", "right"),
        ("kernel", "control", "different"),
        ("much", 3.0, "different"),
    ],
)
def test_the_comparison_is_one_line(capsys, guess, measured, verdict):
    predict("01.x", guess)
    outcome("01.x", measured)
    assert said(capsys).endswith(f": {verdict}")


def test_an_unanswered_prediction_stops_nothing(capsys):
    predict("01.x", ...)
    outcome("01.x", 3)
    first, second = said(capsys).splitlines()
    assert "put your guess in place of the dots" in first
    assert second == "01.x: measured 3, no prediction"


def test_a_guess_must_be_a_number_or_a_word():
    with pytest.raises(ValueError, match=r"a number or a word, got \[2\]"):
        predict("01.x", [2])


def test_the_closing_page_lists_all_in_order(capsys):
    expected_and_happened()
    assert "nothing predicted" in said(capsys)
    outcome("02.b", 1)
    predict("01.a", 5)
    capsys.readouterr()
    expected_and_happened()
    one, two = said(capsys).splitlines()
    assert one.startswith("01.a")
    assert one.endswith("you predicted 5, not measured yet")
    assert two.endswith("measured 1, no prediction")
