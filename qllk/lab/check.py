"""Checks of the learner's functions, by lesson and exercise.

check.attention.weights(my_weights)          the verdict, with its cause in one sentence
check.attention.weights.hint()               one more hint each time
check.attention.weights.solution()           the source of a right answer
"""

from __future__ import annotations

from .exercise import Exercise
from .lessons.exercises import EXERCISES


class _Lesson:
    """The exercises of one lesson, by name."""

    def __init__(self, name: str, exercises: tuple[Exercise, ...]):
        self._name = name
        self._exercises = {one.name.partition(".")[2]: one for one in exercises}

    def __getattr__(self, name: str) -> Exercise:
        if name.startswith("_") or name not in self._exercises:
            known = ", ".join(self._exercises)
            raise AttributeError(f"lesson {self._name!r} has no exercise {name!r}; it has {known}")
        return self._exercises[name]

    def __dir__(self):
        return list(self._exercises)


_LESSONS = {name: _Lesson(name, exercises) for name, exercises in EXERCISES.items()}


def __getattr__(name: str) -> _Lesson:
    if name not in _LESSONS:
        raise AttributeError(f"no lesson {name!r}; there are {', '.join(_LESSONS)}")
    return _LESSONS[name]


def __dir__() -> list[str]:
    return list(_LESSONS)
