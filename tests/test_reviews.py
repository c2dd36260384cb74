"""Questions about earlier lessons."""

from pathlib import Path

import pytest

from qllk.lab.folder import read_table
from qllk.lab.lessons.questions import QUESTIONS
from qllk.lab.reviews import review


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))


def test_a_question_is_asked_with_its_options_and_leaves_no_trace(capsys):
    review("02.1")
    text, *options = capsys.readouterr().out.splitlines()
    assert text == QUESTIONS["02.1"].text
    assert [line.strip()[:2] for line in options] == ["a)", "b)", "c)"]
    assert read_table() == {}


def test_an_answer_is_judged_explained_and_kept(capsys):
    review("02.1", "a")
    review("02.1", "b")
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"02.1: not quite. {QUESTIONS['02.1'].why}"
    assert second == f"02.1: right. {QUESTIONS['02.1'].why}"
    assert read_table() == {"02.1": {"answer": "b", "right": True}}


@pytest.mark.parametrize("answer", ["d", "", "ab", 1, None])
def test_an_answer_is_one_of_the_letters(answer):
    with pytest.raises(ValueError, match=r"question 02\.1 has the answers a, b, c; got"):
        review("02.1", answer)


def test_an_unknown_question_is_refused():
    with pytest.raises(ValueError, match=r"unknown question '01\.9'"):
        review("01.9")


def test_each_lesson_but_the_first_asks_two():
    folder = Path(__file__).resolve().parents[1] / "notebooks"
    lessons = sorted(path.name[:2] for path in folder.glob("[0-9][0-9]_*.ipynb"))[2:]
    assert list(QUESTIONS) == [f"{lesson}.{n}" for lesson in lessons for n in (1, 2)]


def test_the_right_answers_are_spread_and_each_question_makes_sense():
    letters = [question.right for question in QUESTIONS.values()]
    assert all(letters.count(letter) >= 3 for letter in "abc")
    for question in QUESTIONS.values():
        assert question.right in "abcdefgh"[: len(question.options)]
        assert len(set(question.options)) == len(question.options) >= 3
        assert question.text[-1] in "?…."
        assert question.why.endswith(".")
