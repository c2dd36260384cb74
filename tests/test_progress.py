"""The learner's progress in words."""

from qllk.lab.exercise import CORRECT, WRONG_VALUES
from qllk.lab.lessons.questions import QUESTIONS
from qllk.lab.progress import format_progress, show_progress

TABLE = {
    "01.growth": {"predicted": 2.0, "measured": 2.1},
    "02.1": {"answer": "b", "right": True},
    "02.2": {"answer": "a", "right": False},
    "attention.weights": {"verdict": CORRECT, "tries": 3, "hints": 1},
    "attention.merge": {"verdict": WRONG_VALUES, "tries": 1},
    "linear.state": {"hints": 2, "solution": True},
}


def test_what_was_done_is_told_by_lesson():
    *lines, last = format_progress(TABLE).splitlines()
    assert lines[0] == "lesson 01, attention"
    assert lines[1].split(maxsplit=1) == ["01.growth", "you predicted 2, measured 2.1: close"]
    rows = dict(line.split(maxsplit=1) for line in lines if line.startswith("    "))
    assert rows["attention.weights"] == "correct, 3 tries, 1 hint"
    assert rows["attention.merge"] == "wrong values, 1 try"
    assert (rows["02.1"], rows["02.2"]) == ("answered right", "answered wrong")
    assert last.startswith("1 of ")
    assert f"exercises correct, 1 of {len(QUESTIONS)} questions" in last


def test_nothing_done_yet_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    show_progress()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("0 of ")
