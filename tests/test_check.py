"""The checks are checked: wrong answers are refused for the right reason, right ones accepted."""

import json
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
    difference,
)
from qllk.lab.lessons.exercises import EXERCISES as BY_LESSON

EXERCISES = {one.name: one for lesson in BY_LESSON.values() for one in lesson}
# What the check must say of each known mistake: {exercise: {cause: state}}.
PINNED = {
    exercise: causes
    for path in sorted((Path(__file__).parent / "mistake_verdicts").glob("*.json"))
    for exercise, causes in json.loads(path.read_text("utf-8")).items()
}
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
