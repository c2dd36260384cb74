"""What a cell calls: same, show, digits, sized, tiny; predictions that are kept."""

import json

import pytest
import torch

from qllk.lab import TEXT, digits, expected_and_happened, outcome, predict, same, show, sized, tiny
from qllk.model import kernels


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    return tmp_path / "predictions.json"


def said(capsys):
    return capsys.readouterr().out.strip()


def test_same_says_so_or_raises_with_the_first_place(capsys):
    x = torch.arange(6.0).view(2, 3)
    same(x, x + 1e-12)
    same(2, 2.0)
    assert said(capsys).splitlines()[0] == "same: 2 x 3, no gap above 1e-09"
    y = x.clone()
    y[1, 2] = 9
    with pytest.raises(AssertionError, match=r"first at \(1, 2\): 5 and 9"):
        same(x, y)
    with pytest.raises(AssertionError, match=r"shapes differ: \(2, 3\) and \(3, 2\)"):
        same(x, x.t())
    with pytest.raises(AssertionError, match="differ"):
        same(x * float("nan"), x * float("nan"))


def test_show_prints_the_real_source(capsys):
    show(kernels.causal_mask)
    text = said(capsys)
    assert text.startswith("# qllk/model/masks.py\ndef causal_mask(")
    assert "torch.arange(N - T, N" in text


def test_digits_round_and_know_no_minus_zero(capsys):
    digits(torch.tensor([[1.23456, -0.00001], [10.0, 2.0]]))
    digits(3.14159, places=1)
    assert capsys.readouterr().out == "  1.235   0.000\n 10.000   2.000\n  3.1\n"


@pytest.mark.parametrize(("value", "got"), [("1", "small"), ("0", "full"), ("", "full")])
def test_the_size_is_chosen_by_the_environment(monkeypatch, value, got):
    monkeypatch.setenv("QLLK_FAST", value)
    assert sized("full", "small") == got


def test_the_tiny_string_is_embedded_the_same_each_time():
    x, q, k = tiny(4, 0, "q", "k")
    assert x.shape == q.shape == (1, len(TEXT), 4)
    assert len(TEXT) == 16
    assert torch.equal(tiny(4, 0, "q", "k")[2], k)
    assert not torch.equal(q, k)
    assert torch.equal(x[0, 0], x[0, 3])  # both are an "a"


# ---------------------------------------------------------------- predictions


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
        ("kernel", "control", "not so"),
        ("much", 3.0, "not so"),
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


def test_a_damaged_file_is_named_and_a_read_only_folder_stops_nothing(capsys, home, monkeypatch):
    home.write_text("[1]")
    with pytest.raises(ValueError, match=r"predictions\.json is damaged .*; delete it"):
        predict("01.x", 1)
    home.unlink()

    def refuse(*_):
        raise OSError("read only")

    monkeypatch.setattr("qllk.lab.predictions.write_atomically", refuse)
    predict("01.x", 1)
    assert "(not kept: read only)" in said(capsys)
