"""Checks: a learner's function is called on random inputs and compared with a slow, known truth.

    check.attention.weights(my_weights)          the verdict, with its cause in one sentence
    check.attention.weights.hint()               one more hint each time
    check.attention.weights.solution()           the source of a right answer

The exercises stand in `lessons/`, one file a lesson; this file knows none of them.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..probes import measure

NOT_ATTEMPTED = "not attempted"
RAISES = "raises an error"
WRONG_KIND = "wrong type or shape"
WRONG_VALUES = "wrong values"
WRONG_WHEN_LONG = "right when short, wrong when long"
SEES_THE_FUTURE = "sees the future"
TOO_STEEP = "right, but its work grows too fast"
CORRECT = "correct"
LAST_DIGITS = 1e-5  # the relative error of a sum in float32, generously


class Verdict(NamedTuple):
    """What a check found, and why."""

    state: str
    cause: str = ""

    def __str__(self):
        return f"{self.state}. {self.cause}" if self.cause else self.state


class Mistake(NamedTuple):
    """A wrong answer that people give: what the check must say of it, and what went wrong."""

    state: str
    cause: str
    answer: Callable


class Case(NamedTuple):
    """The arguments of one call; `long` ones tell a wrong rule from one that is right at first."""

    arguments: tuple
    long: bool = False


@dataclass(frozen=True)
class Exercise:
    """One task with its truth.

    name        "attention.weights": the lesson's file and the exercise
    answer      a right answer, whose source is the solution
    cases       from a generator of random numbers, the inputs to try: batch 1, length 1, odd sizes
    truth       the slow definition in float64, if it is not the answer itself
    mistakes    wrong answers people give; whoever gives one is told its cause
    time_axis   of the arguments' and the result's tensors: then the past may not see the future
    steepest    the largest exponent of work (numbers made) with length; `sized` gives the inputs
                of a length
    """

    name: str
    difficulty: int  # 1 to 3
    minutes: int
    answer: Callable
    cases: Callable[[torch.Generator], Iterable[Case]]
    hints: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    truth: Callable | None = None
    time_axis: int | None = None
    steepest: float | None = None
    sized: Callable[[int], tuple] | None = None
    within: float = 1e-9
    _told: list = field(default_factory=list, repr=False)

    def __call__(self, answer: Callable) -> None:
        """Judge the learner's function, and print the verdict."""
        verdict = self.judge(answer)
        print(f"{self.name}: {verdict}")
        if verdict.state not in (CORRECT, NOT_ATTEMPTED):
            print(f"For a hint: check.{self.name}.hint()")

    def judge(self, answer: Callable) -> Verdict:
        """The verdict, unprinted."""
        if not callable(answer):
            return Verdict(WRONG_KIND, f"Give the function itself, not {type(answer).__name__}.")
        short_ones_right = False
        for case in self.cases(torch.Generator().manual_seed(1)):
            verdict = self._compare(answer, case)
            if verdict.state == WRONG_VALUES:
                return self._explain(answer, case, verdict, short_ones_right)
            if verdict.state != CORRECT:
                return verdict
            short_ones_right = short_ones_right or not case.long
        return self._growth(answer)

    def _compare(self, answer, case) -> Verdict:
        wanted = (self.truth or self.answer)(*copy.deepcopy(case.arguments))
        try:
            got = answer(*copy.deepcopy(case.arguments))
        except NotImplementedError:
            return Verdict(NOT_ATTEMPTED)
        except Exception as error:
            return Verdict(RAISES, f"{type(error).__name__}: {error}. {self._called(case)}")
        if got is None or got is ...:
            return Verdict(NOT_ATTEMPTED)
        verdict = difference(got, wanted, self.within)
        if verdict.state == CORRECT:
            return verdict
        return Verdict(verdict.state, f"{verdict.cause} {self._called(case)}")

    def _called(self, case) -> str:
        """A sentence with the arguments: numbers as they are, tensors by their shapes."""
        names = inspect.signature(self.answer).parameters
        said = ", ".join(map(argument, names, case.arguments))
        return f"Called with {said}."

    def _explain(self, answer, case, verdict, short_ones_right) -> Verdict:
        """The cause of wrong values, from the most telling down."""
        state, cause = WRONG_WHEN_LONG if case.long and short_ones_right else WRONG_VALUES, ""
        if self.time_axis is not None and (leak := self._leak(answer, case)):
            state, cause = SEES_THE_FUTURE, leak
        known = (m.cause for m in self.mistakes if self._gives(m.answer, answer, case))
        return Verdict(state, " ".join(filter(None, [next(known, ""), cause or verdict.cause])))

    def _gives(self, mistake, answer, case) -> bool:
        """Whether the learner's function does what a known mistake does."""
        try:
            theirs, known = (f(*copy.deepcopy(case.arguments)) for f in (answer, mistake))
            return difference(theirs, known, self.within).state == CORRECT
        except Exception:
            return False

    def _leak(self, answer, case) -> str | None:
        """A sentence if changing what comes late changes what comes early."""
        axis = self.time_axis
        length = max(x.shape[axis] for x in case.arguments if timed(x, axis))
        generator = torch.Generator().manual_seed(2)
        for t in range(length - 1):
            changed = [
                late_noise(x, axis, t + 1, generator) if timed(x, axis) else x
                for x in copy.deepcopy(case.arguments)
            ]
            before, after = answer(*copy.deepcopy(case.arguments)), answer(*changed)
            for a, b in zip(as_tensors(before), as_tensors(after), strict=True):
                early = slice(0, t + 1)
                a, b = (y.movedim(axis, 0)[early] for y in (a, b) if y.ndim > axis)
                if not torch.allclose(a, b, rtol=0, atol=self.within, equal_nan=True):
                    return f"A new input at place {t + 1} changed the result at {t} or before."
        return None

    def _growth(self, answer) -> Verdict:
        if self.steepest is None:
            return Verdict(CORRECT)
        lengths = (128, 256, 512)
        made = [
            measure.trace_memory(lambda: answer(*self.sized(length))).numbers_made  # noqa: B023
            for length in lengths
        ]
        grown = measure.fit_exponent(lengths, made)
        if grown.exponent <= self.steepest:
            return Verdict(CORRECT)
        return Verdict(
            TOO_STEEP,
            f"Twice the length makes {2**grown.exponent:.1f} times as many numbers; "
            f"at most {2**self.steepest:.1f} times is wanted.",
        )

    def hint(self) -> None:
        """Print the next hint; after the last one, where the solution is."""
        number = len(self._told)
        if number < len(self.hints):
            self._told.append(number)
            print(f"Hint {number + 1} of {len(self.hints)}. {self.hints[number]}")
        else:
            print(f"No more hints. The solution: check.{self.name}.solution()")

    def solution(self) -> None:
        """Print the source of a right answer."""
        print(inspect.getsource(self.answer).rstrip())


def normal(rng, *shape):
    """Normal random numbers in float64, for the cases of an exercise."""
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def timed(x, axis) -> bool:
    return isinstance(x, torch.Tensor) and x.ndim > axis


def late_noise(x, axis, start, generator):
    """The tensor with everything from `start` on drawn anew."""
    x = x.clone()
    late = x.movedim(axis, 0)[start:]
    if x.is_floating_point():
        late.copy_(torch.randn(late.shape, generator=generator, dtype=torch.float64))
    else:
        late.add_(1)
    return x


def as_tensors(value) -> list[torch.Tensor]:
    """A number, a tensor, or a tuple of such, as a list of tensors in float64.

    Raises   TypeError for anything else
    """
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in as_tensors(part)]
    if isinstance(value, bool | int | float):
        return [torch.tensor(value, dtype=torch.float64)]
    if isinstance(value, torch.Tensor):
        return [value.detach().double()]
    raise TypeError(f"{type(value).__name__}")


def difference(got, wanted, within) -> Verdict:
    """How a result differs from the wanted one: in kind, in shape, in values, or not at all."""
    if isinstance(wanted, str):
        right = got == wanted
        return Verdict(CORRECT) if right else Verdict(WRONG_VALUES, f"Got {got!r}.")
    try:
        theirs = as_tensors(got)
    except TypeError as error:
        return Verdict(WRONG_KIND, f"Got a {error}; wanted {described(as_tensors(wanted))}.")
    ours = as_tensors(wanted)
    if [x.shape for x in theirs] != [x.shape for x in ours]:
        kind = "a list of " if isinstance(got, list) else ""
        return Verdict(WRONG_KIND, f"Got {kind}{described(theirs)}; wanted {described(ours)}.")
    for a, b in zip(theirs, ours, strict=True):
        scale = max(1.0, b.abs().max().item() if b.numel() else 1.0)
        wrong = ~((a == b) | ((a - b).abs() <= within * scale))  # so that nan is wrong
        if wrong.any() and ((a - b).abs() <= LAST_DIGITS * scale).all():
            return Verdict(WRONG_VALUES, "Off in the last digits only: is a part of it float32?")
        if wrong.any():
            where = tuple(wrong.nonzero()[0].tolist())
            place = f"At {where} " if where else ""
            text = f"{place}wanted {b[where].item():.4g}, got {a[where].item():.4g}."
            return Verdict(WRONG_VALUES, text[0].upper() + text[1:])
    return Verdict(CORRECT)


def argument(name, value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{name} {tuple(value.shape)}" if value.ndim else f"{name} = {value.item():.4g}"
    return f"{name} = {reprlib.repr(value)}"


def described(tensors) -> str:
    shapes = [f"shape {tuple(x.shape)}" if x.ndim else "one number" for x in tensors]
    return " and ".join(shapes)


class Lesson:
    """The exercises of one lesson, by name."""

    def __init__(self, name: str):
        self._name = name
        self._exercises = {
            exercise.name.partition(".")[2]: exercise for exercise in exercises_of(name)
        }

    def __getattr__(self, name: str) -> Exercise:
        if name.startswith("_") or name not in self._exercises:
            known = ", ".join(self._exercises)
            raise AttributeError(f"lesson {self._name!r} has no exercise {name!r}; it has {known}")
        return self._exercises[name]

    def __dir__(self):
        return list(self._exercises)


def exercises_of(lesson: str) -> tuple[Exercise, ...]:
    return importlib.import_module(f"{__package__}.lessons.{lesson}").EXERCISES


def __getattr__(name: str) -> Lesson:
    from . import lessons

    if name not in (known := lessons.written()):
        raise AttributeError(f"no lesson {name!r}; there are {', '.join(known)}")
    globals()[name] = Lesson(name)
    return globals()[name]
