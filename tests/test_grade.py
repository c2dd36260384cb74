"""Notebooks of learners are judged in a process of their own."""

import csv
import json

import pytest

from qllk.__main__ import main
from qllk.lab.exercise import CORRECT, NOT_ATTEMPTED, RAISES, WRONG_KIND
from qllk.lab.grade import TIMED_OUT, UNREADABLE, format_grades, grade, judge_notebook, to_csv

RIGHT = """def my_half_life(steps):
    return 0.5 ** (1 / steps)"""


def write(path, *sources):
    cells = [{"cell_type": "markdown", "source": ["check.growth.stall(my_text)"]}]
    cells += [
        {"cell_type": "code", "source": source.splitlines(keepends=True)} for source in sources
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells}))
    return path


def verdicts(path):
    return {name: (verdict, cause) for name, verdict, cause in judge_notebook(path)}


def test_the_functions_of_a_notebook_are_judged_and_all_exercises_of_its_lesson_listed(tmp_path):
    path = write(
        tmp_path / "a.ipynb",
        "import math\nSCALE = 1\nexplode = 1 / 0\nprint(1 / 0)\n%matplotlib inline",
        f"import math\nprint(1 / 0)\n{RIGHT}",
        "check.growth.half_life(my_half_life)",
        "def my_stall(*x):\n    return nothing",
        "check.growth.stall(my_stall)",
    )
    found = verdicts(path)
    assert found["growth.half_life"] == (CORRECT, "")
    assert found["growth.stall"][0] == RAISES
    assert "name 'nothing' is not defined" in found["growth.stall"][1]
    assert found["growth.fading_sum"] == (NOT_ATTEMPTED, "")
    assert len(found) == 3


def test_a_definition_that_fails_is_told(tmp_path):
    source = f"import nonsense\n{RIGHT}\ncheck.growth.half_life(my_half_life)"
    verdict, cause = verdicts(write(tmp_path / "a.ipynb", source))["growth.half_life"]
    assert (verdict, cause) == (RAISES, "ModuleNotFoundError: No module named 'nonsense'.")


def test_an_answer_of_an_earlier_exercise_can_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path / "home"))
    path = write(
        tmp_path / "a.ipynb",
        "from qllk.lab import check\nhalf_life = check.growth.half_life.mine()",
        "def my_half_life(factor):\n    return half_life(factor)",
        "check.growth.half_life(my_half_life)",
    )
    assert verdicts(path)["growth.half_life"] == (CORRECT, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a notebook"),
        ("[]", "not a notebook"),
        ('{"cells": []}', "no line check.lesson.exercise"),
    ],
)
def test_what_is_no_lesson_is_refused_in_words(tmp_path, text, said):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(ValueError, match=said):
        judge_notebook(tmp_path / "a.ipynb")


@pytest.mark.parametrize("error", ["SystemExit(0)", "KeyboardInterrupt", "BaseException('odd')"])
def test_a_function_or_a_definition_that_raises_anything_gets_a_verdict(tmp_path, error):
    path = write(
        tmp_path / "a.ipynb",
        f"def my_half_life(steps):\n    raise {error}",
        "check.growth.half_life(my_half_life)",
        f"def stop():\n    raise {error}\n@stop()\ndef my_stall(x):\n    return x",
        "check.growth.stall(my_stall)",
    )
    found = verdicts(path)
    for exercise in ("growth.half_life", "growth.stall"):
        assert found[exercise][0] == RAISES
        assert error.split("(")[0] in found[exercise][1]


@pytest.mark.slow
def test_notebooks_that_end_their_process_or_print_without_end_are_graded(tmp_path):
    call = "check.growth.half_life(my_half_life)"
    write(tmp_path / "a.ipynb", "import os\ndef my_half_life(steps):\n    os._exit(0)", call)
    write(tmp_path / "b.ipynb", "def my_half_life(steps):\n    print('x' * 10**7)", call)
    ended, printed = (one for one in grade(tmp_path) if one.verdict != NOT_ATTEMPTED)
    assert (ended.verdict, ended.cause) == (UNREADABLE, "exit status 0")
    assert printed.verdict == WRONG_KIND


@pytest.mark.slow
def test_a_folder_is_graded_notebook_by_notebook_whatever_they_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = "check.growth.half_life(my_half_life)"
    folder = tmp_path / "class"
    write(folder / "a" / "04.ipynb", "import math", RIGHT, call)
    write(folder / "b" / "04.ipynb", "def my_half_life(factor):\n    while True: pass", call)
    connect = "import socket\n    socket.create_connection(('127.0.0.1', 9))"
    write(folder / "c" / "04.ipynb", f"def my_half_life(factor):\n    {connect}", call)
    write(folder / "d" / "04.ipynb", "import os\ndef my_half_life(factor):\n    os._exit(3)", call)
    write(folder / "e" / "04.ipynb", "x = 1")
    write(folder / "a" / ".ipynb_checkpoints" / "04.ipynb", "x = 1")
    assert main(["grade", str(folder), "--seconds", "20"]) == 0
    rows = list(csv.DictReader((tmp_path / "grades.csv").open()))
    found = {row["notebook"][0]: row for row in reversed(rows)}
    assert sorted({row["notebook"] for row in rows}) == [f"{x}/04.ipynb" for x in "abcde"]
    assert found["a"]["verdict"] == CORRECT
    assert found["b"]["verdict"] == TIMED_OUT
    assert found["c"]["verdict"] == RAISES
    assert "no network" in found["c"]["cause"]
    assert (found["d"]["verdict"], found["d"]["cause"]) == (UNREADABLE, "exit status 3")
    assert (found["e"]["verdict"], found["e"]["cause"][:13]) == (UNREADABLE, "no line check")
    assert "a/04.ipynb" in capsys.readouterr().out


def test_a_folder_without_notebooks_is_refused(tmp_path, capsys):
    assert main(["grade", str(tmp_path)]) == 1
    assert "no notebook in" in capsys.readouterr().err
    assert main(["grade", str(tmp_path), "--seconds", "0"]) == 1


def test_grades_are_shown_in_columns_and_as_csv():
    grades = list(
        map(tuple, [["a.ipynb", "growth.stall", CORRECT, ""], ["b", "x", RAISES, "1, 2"]])
    )
    head, first, second = format_grades(grades).splitlines()
    assert head.split() == ["notebook", "exercise", "verdict", "cause"]
    assert first.index("growth") == second.index("x")
    assert to_csv(grades).splitlines()[-1] == 'b,x,raises an error,"1, 2"'
