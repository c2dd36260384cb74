"""Predictions are saved, and compared with what was measured."""

import json
import math

import numpy as np
import pytest
import torch

from qllk.lab import expected_and_happened, folder, outcome, predict


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    monkeypatch.setattr(folder, "_unsaved", {})
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


@pytest.mark.parametrize(
    "number",
    [np.int64(2), np.float32(2), np.array(2), np.array([2]), torch.tensor(2.0), torch.tensor([2])],
)
def test_numbers_of_numpy_and_torch_are_numbers(capsys, home, number):
    predict("01.x", number)
    outcome("01.x", number)
    assert json.loads(home.read_text()) == {"01.x": {"predicted": 2, "measured": 2}}
    assert said(capsys).endswith("you predicted 2, measured 2: close")


NO_GUESSES = [[2], None, True, np.bool_(True), np.zeros(2), torch.zeros(2), 2j, 10**400, object()]
NO_GUESSES += ["", "x" * 1000, "\x1b[2J", "\ud800", b"two"]


@pytest.mark.parametrize("guess", NO_GUESSES, ids=range(len(NO_GUESSES)))
def test_what_is_neither_a_number_nor_a_word_is_refused(home, guess):
    with pytest.raises(ValueError, match="a prediction is a number or a short word, got "):
        predict("01.x", guess)
    with pytest.raises(ValueError, match="a measurement is a number or a short word, got "):
        outcome("01.x", guess)
    assert not home.exists()


@pytest.mark.parametrize("key", [3, None, "", "\x1b[2J", np.int64(3)])
def test_a_key_is_a_word(key):
    for act in (predict, outcome):
        with pytest.raises(ValueError, match="a key is a short word, got "):
            act(key, 2.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 10**300])
def test_any_measurement_is_compared(capsys, value):
    predict("01.x", value)
    outcome("01.x", value)
    outcome("01.x", 1e-308)
    assert len(said(capsys).splitlines()) == 3


def test_a_prediction_can_be_made_where_nothing_can_be_kept(capsys, home):
    home.mkdir()
    predict("01.x", 2.0)
    outcome("01.x", 2.1)
    expected_and_happened()
    told = said(capsys)
    assert told.count(f"(not saved: {home}") == 2
    assert told.endswith("you predicted 2, measured 2.1: close")


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
