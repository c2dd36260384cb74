"""The checks are checked: wrong answers are refused for the right reason, right ones accepted."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from right_answers import RIGHT

from qllk.lab import check
from qllk.lab.exercise import (
    CORRECT,
    NOT_ATTEMPTED,
    RAISES,
    SEES_THE_FUTURE,
    TOO_STEEP,
    WRONG_KIND,
    WRONG_VALUES,
    WRONG_WHEN_LONG,
    Case,
    Exercise,
    difference,
)
from qllk.lab.lessons.exercises import EXERCISES as BY_LESSON
from qllk.model import masks

EXERCISES = {one.name: one for lesson in BY_LESSON.values() for one in lesson}
# What the check must say of each known mistake: {exercise: {cause: state}}.
PINNED = json.loads((Path(__file__).parent / "mistake_verdicts.json").read_text("utf-8"))
each_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


@each_exercise
def test_the_solution_is_correct(exercise):
    assert exercise.judge(exercise.answer).state == CORRECT


@each_exercise
def test_other_right_answers_are_accepted(exercise):
    others = RIGHT[exercise.name]
    assert others
    for answer in others:
        assert str(exercise.judge(answer)) == CORRECT


@each_exercise
def test_typical_mistakes_are_refused_for_the_right_reason(exercise):
    assert len(exercise.mistakes) >= 3
    assert list(exercise.mistakes) == list(PINNED[exercise.name])
    for cause, mistake in exercise.mistakes.items():
        verdict = exercise.judge(mistake)
        assert verdict.state == PINNED[exercise.name][cause], cause
        if verdict.state in (WRONG_VALUES, WRONG_WHEN_LONG):
            assert verdict.cause.startswith(cause)


@each_exercise
def test_the_stub_is_not_attempted(exercise):
    def stub(*arguments): ...

    assert exercise.judge(stub).state == NOT_ATTEMPTED


@each_exercise
def test_an_answer_of_another_kind_is_refused(exercise):
    assert exercise.judge(lambda *_: object()).state in (WRONG_KIND, WRONG_VALUES)
    assert exercise.judge(3).state == WRONG_KIND


@each_exercise
def test_it_says_what_a_learner_needs(exercise):
    assert 1 <= len(exercise.hints) <= 3
    for text in (*exercise.hints, *exercise.mistakes):
        assert re.search(r"[.?]$", text), "whole sentences"


@each_exercise
def test_the_cases_are_the_awkward_ones(exercise):
    cases = list(exercise.cases(torch.Generator().manual_seed(0)))
    assert len(cases) >= 3
    again = list(exercise.cases(torch.Generator().manual_seed(0)))
    for one, two in zip(cases, again, strict=True):
        assert difference(str(one.arguments), str(two.arguments), 0).state == CORRECT


# ---------------------------------------------------------------- the machinery


def total(x):
    return x.cumsum(0)


def exercise(truth=total, **more):
    def cases(rng):
        for T in (1, 3, 7):
            yield Case((torch.randn(T, generator=rng, dtype=torch.float64),))
        yield Case((torch.randn(40, generator=rng, dtype=torch.float64),), long=True)

    return Exercise(truth, cases, hints=("One.", "Two."), mistakes={}, **more)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda x: x.cumsum(0), CORRECT),
        (lambda x: ..., NOT_ATTEMPTED),
        (lambda x: (_ for _ in ()).throw(NotImplementedError()), NOT_ATTEMPTED),
        (lambda x: x[0], r"wrong type or shape\. Got one number; wanted shape \(1,\)\."),
        (lambda x: "sum", r"wrong type or shape\. Got a str; wanted shape \(1,\)\."),
        (lambda x: x / 0 * 0, r"wrong values\. At \(0,\) wanted .*, got nan\."),
        (lambda x: x.sum().expand_as(x), r"sees the future\. A new input at place 1 changed"),
        (lambda x: x.clone().unfold(0, 1, 1)[:, 0] * 2, r"wrong values\. At"),
        (lambda x: x.cumsum(0) * (1 if len(x) < 9 else 2), "right when short, wrong when long"),
        (lambda x: x.nope, r"raises an error\. AttributeError: .*nope"),
    ],
)
def test_each_verdict_names_its_cause(answer, verdict):
    assert re.match(verdict, str(exercise(time_axis=0).judge(answer)))


def test_plain_numbers_are_as_exact_as_tensors():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert difference(third, 1 / 3, 1e-12).state == CORRECT
    assert difference(1 / 3 + 1e-9, third, 1e-12).state == WRONG_VALUES


def test_work_that_grows_too_fast_is_noticed():
    def square(x):
        return (torch.ones(len(x), len(x), dtype=x.dtype).tril() * x).sum(1)

    steep = exercise(steepest=1.1, sized=lambda T: (torch.zeros(T, dtype=torch.float64),))
    assert steep.judge(lambda x: x.cumsum(0)).state == CORRECT
    verdict = steep.judge(square)
    assert verdict.state == TOO_STEEP
    assert "Twice the length makes 4.0 times" in verdict.cause


def test_a_learners_function_cannot_spoil_the_inputs():
    def spoils(x):
        y = x.cumsum(0)
        x.zero_()
        return y

    assert exercise().judge(spoils).state == CORRECT


def test_the_verdict_is_printed_with_the_way_to_a_hint(capsys):
    some = exercise()
    some(lambda x: x)
    said = capsys.readouterr().out
    assert said.startswith("test_check.total: wrong values. At (1,)")
    assert "check.test_check.total.hint()" in said
    some(lambda x: None)
    assert capsys.readouterr().out == "test_check.total: not attempted\n"


def test_hints_come_one_by_one_and_end_at_the_solution(capsys):
    some = exercise(masks.causal_mask)
    for _ in range(3):
        some.hint()
    one, two, last = capsys.readouterr().out.splitlines()
    assert (one, two) == ("Hint 1 of 2. One.", "Hint 2 of 2. Two.")
    assert "check.masks.causal_mask.solution()" in last
    some.solution()
    assert "def causal_mask(" in capsys.readouterr().out


def test_an_unknown_lesson_or_exercise_lists_the_known():
    with pytest.raises(AttributeError, match=r"no lesson 'atention'; there are .*cumsum"):
        _ = check.atention
    with pytest.raises(AttributeError, match="no exercise 'kernal'; it has kernel, resume"):
        _ = check.cumsum.kernal


def test_verdicts_are_of_a_fixed_list():
    known = {NOT_ATTEMPTED, RAISES, WRONG_KIND, WRONG_VALUES, WRONG_WHEN_LONG, SEES_THE_FUTURE}
    states = {state for causes in PINNED.values() for state in causes.values()}
    assert set(PINNED) == set(EXERCISES)
    assert states <= known | {TOO_STEEP}


# ---------------------------------------------------------------- what a verdict tells


def scaled_by(x, factor):
    return factor * x


SCALED = Exercise(
    answer=scaled_by,
    cases=lambda rng: [Case((torch.randn(3, 4, generator=rng, dtype=torch.float64), 7))],
    hints=("Multiply.",),
    mistakes={},
)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda x, factor: x, "Called with x (3, 4), factor = 7."),
        (lambda x, factor: x @ x, "Called with x (3, 4), factor = 7."),
        (lambda x, factor: [1.0, 2.0], "Got a list of one number and one number"),
        (lambda x, factor: factor * x.float(), "last digits only: is a part of it float32?"),
    ],
)
def test_a_verdict_names_the_call_the_kind_and_the_precision(answer, told):
    assert told in SCALED.judge(answer).cause


def test_an_infinity_that_is_wanted_is_right_and_nan_never_is():
    wanted = torch.tensor([math.inf, 1.0])
    assert difference(wanted.clone(), wanted, 1e-9).state == CORRECT
    assert difference(torch.tensor([math.nan, 1.0]), wanted, 1e-9).state == WRONG_VALUES
