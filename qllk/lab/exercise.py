"""Exercises: a learner's function is called on random inputs and compared with a known truth.

    exercise(my_weights)          print the verdict, with its cause in one sentence
    exercise.hint()               print one more hint each time
    exercise.solution()           print the source of a right answer
    my_weights = exercise.mine()  the learner's function once its check said "correct", in this
                                  session or an earlier one; until then, the library's

This file is the machinery. The exercises themselves are in `lessons/exercises`, and `check` offers
them by name.
"""

from __future__ import annotations

import copy
import inspect
import io
import reprlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from ..probes import measure
from ..training import devices
from .folder import update_row, write_row
from .keep import keep, kept
from .show import describe_error

NOT_ATTEMPTED = "not attempted"
RAISES = "raises an error"
WRONG_KIND = "wrong type or shape"
WRONG_VALUES = "wrong values"
WRONG_WHEN_LONG = "right when short, wrong when long"
SEES_THE_FUTURE = "sees the future"
TOO_STEEP = "right, but its work grows too fast"
CORRECT = "correct"
_LAST_DIGITS = 1e-5  # a generous bound on the relative error of sums in float32
_MOST_PRINTED = 2000  # characters of what a learner's function prints
_SLOW_SECONDS = 60.0
_OFF_A_LITTLE = "Off in the last digits only"


class Verdict(NamedTuple):
    """What a check found, and why."""

    state: str
    cause: str = ""

    def __str__(self):
        return f"{self.state}. {self.cause}" if self.cause else self.state


class Case(NamedTuple):
    """The arguments of one call. Only `long` inputs reveal an answer that is right at first."""

    arguments: tuple
    long: bool = False


@dataclass(frozen=True, repr=False)
class Exercise:
    """One exercise with its truth. Its name is that of the lesson and of the answer.

    answer      a right answer, whose source is the solution
    cases       makes the inputs to try from a generator: batch 1, length 1, odd sizes
    mistakes    typical wrong answers by the cause that a learner is shown who gives one
    truth       the slow definition in float64, if it is not the answer itself
    time_axis   the axis of time in the arguments and the result, where causality is checked
    steepest    the largest allowed exponent of work (numbers made) with length; `sized` makes the
                inputs of a given length
    within      the allowed error
    use         how an answer is used that is a class, or is called several times: called with it
                and with the arguments of a case, it returns the result; see `use_module`
    """

    answer: Callable
    cases: Callable[[torch.Generator], Iterable[Case]]
    hints: tuple[str, ...]
    mistakes: dict[str, Callable]
    truth: Callable | None = None
    time_axis: int | None = None
    steepest: float | None = None
    sized: Callable[[int], tuple] | None = None
    within: float = 1e-9
    use: Callable | None = None
    _session: dict = field(default_factory=dict, repr=False)  # hints shown, function that passed

    @property
    def name(self) -> str:
        """For example "attention.weights"."""
        return f"{self.answer.__module__.rpartition('.')[2]}.{self.answer.__name__}"

    def __repr__(self):  # without the hints
        return f"<exercise {self.name}: call it with your function>"

    def __call__(self, answer: Callable) -> None:
        """Judge the learner's function and print the verdict."""
        verdict = self.judge(answer)
        print(f"{self.name}: {verdict}")
        if verdict.state == NOT_ATTEMPTED:
            return
        update_row(self.name, partial(_one_more_try, verdict.state))
        if verdict.state == CORRECT:
            self._keep(answer)
        else:
            print(f"For a hint: check.{self.name}.hint()")

    def _keep(self, answer):
        self._session["passed"] = answer
        try:
            keep(self.name, answer)
        except (OSError, ValueError) as error:
            print(f"(kept for this session only: {error})")

    def mine(self) -> Callable:
        """The learner's function once it passed, if it still does; else the library's. Print which
        of them it is.

        It is judged again, since what it uses may have changed, in the notebook or in its file.
        """
        function, reason = self._session.get("passed"), ""
        try:
            function = function or kept(self.name)
        except (Exception, SystemExit) as error:
            reason = f", since yours no longer runs ({describe_error(error)})"
        if function and (verdict := self.judge(function)).state != CORRECT:
            function, reason = None, f", since yours is now: {verdict}"
        if not function:
            print(f"{self.name}: the library's{reason}")
            return self.answer
        self._session["passed"] = function
        print(f"{self.name}: your {getattr(function, '__name__', type(function).__name__)}")
        return function

    def judge(self, answer: Callable) -> Verdict:
        """The verdict on the learner's function, whatever it does.

        What it prints is shown afterwards, cut off where it gets long.

        Raises   KeyboardInterrupt when the judgement is interrupted
        """
        if not callable(answer):
            return Verdict(WRONG_KIND, f"Give the function itself, not {type(answer).__name__}.")
        with _usual_conditions(), _short_output(), _notice_if_slow(self.name):
            try:
                return self._judge(answer)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                said = [f"It fails when it is called again: {describe_error(error)}."]
                return Verdict(RAISES, " ".join(said + _line_of(error, self._as_function(answer))))

    def _judge(self, answer) -> Verdict:
        answer, short_ones_right = self._as_function(answer), False
        for case in self.cases(torch.Generator().manual_seed(1)):
            verdict = self._compare(answer, case)
            if verdict.state == WRONG_VALUES:
                return self._explain(answer, case, verdict, short_ones_right)
            if verdict.state != CORRECT:
                return verdict
            short_ones_right = short_ones_right or not case.long
        return self._growth(answer)

    def _as_function(self, answer):
        """The answer as a function of a case's arguments."""
        return partial(self.use, answer) if self.use else answer

    def _compare(self, answer, case) -> Verdict:
        wanted = _call(self.truth or self._as_function(self.answer), case.arguments)
        try:
            got = _call(answer, case.arguments)
        except NotImplementedError:
            return Verdict(NOT_ATTEMPTED)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = f"{describe_error(error).rstrip('.')}."
            return Verdict(RAISES, " ".join([said, *_line_of(error, answer), self._called(case)]))
        if got is None or got is ...:
            if _is_stub(answer):
                return Verdict(NOT_ATTEMPTED)
            return Verdict(WRONG_KIND, "It returns nothing: is a `return` missing?")
        verdict = difference(got, wanted, self.within)
        if verdict.state == CORRECT:
            return verdict
        return Verdict(verdict.state, f"{verdict.cause} {self._called(case)}")

    def _called(self, case) -> str:
        """A sentence with the arguments: tensors by their shapes, other values as they are."""
        names = _parameters(self._as_function(self.answer))
        if self.use is use_module:
            names = [_parameters(self.answer.forward)[1], "weights", *_parameters(self.answer)]
        said = ", ".join(map(_format_argument, names, case.arguments))
        return f"Called with {said}."

    def _explain(self, answer, case, verdict, short_ones_right) -> Verdict:
        """The most telling cause of wrong values."""
        state, shown = WRONG_WHEN_LONG if case.long and short_ones_right else WRONG_VALUES, ""
        if self.time_axis is not None and (leak := self._leak(answer, case)):
            state, shown = SEES_THE_FUTURE, leak
        known = (cause for cause, m in self.mistakes.items() if self._gives(m, answer, case))
        cause = next(known, "")
        if cause and verdict.cause.startswith(_OFF_A_LITTLE):  # a guess, and no longer needed
            shown = shown or self._called(case)
        return Verdict(state, " ".join(filter(None, [cause, shown or verdict.cause])))

    def _gives(self, mistake, answer, case) -> bool:
        """Whether the learner's function returns what a known mistake returns."""
        try:
            known = self._as_function(mistake)
            theirs, known = (_call(f, case.arguments) for f in (answer, known))
            return difference(theirs, known, self.within).state == CORRECT
        except Exception:
            return False

    def _leak(self, answer, case) -> str | None:
        """A sentence if a change of later inputs changes earlier results."""
        axis = self.time_axis
        length = max(x.shape[axis] for x in case.arguments if _has_time(x, axis))
        generator = torch.Generator().manual_seed(2)
        for t in range(length - 1):
            changed = [
                _redraw_late(x, axis, t + 1, generator) if _has_time(x, axis) else x
                for x in case.arguments
            ]
            before, after = _call(answer, case.arguments), _call(answer, changed)
            for a, b in zip(_to_tensors(before), _to_tensors(after), strict=True):
                early = slice(0, t + 1)
                a, b = (y.movedim(axis, 0)[early] for y in (a, b) if y.ndim > axis)
                if not torch.allclose(a, b, rtol=0, atol=self.within, equal_nan=True):
                    return f"A new input at place {t + 1} changed the result at {t} or before."
        return None

    def _growth(self, answer) -> Verdict:
        if self.steepest is None:
            return Verdict(CORRECT)
        lengths = (128, 256, 512)
        with _usual_conditions():
            made = [
                measure.trace_memory(lambda: answer(*self.sized(length))).numbers_made  # noqa: B023
                for length in lengths
            ]
        grown = measure.fit_exponent(lengths, [max(1, numbers) for numbers in made])
        if grown.exponent <= self.steepest:
            return Verdict(CORRECT)
        return Verdict(
            TOO_STEEP,
            f"Twice the length makes {2**grown.exponent:.1f} times as many numbers; "
            f"at most {2**self.steepest:.1f} times is wanted.",
        )

    def hint(self) -> None:
        """Print the next hint; after the last one, where the solution is."""
        number = self._session.get("hints", 0)
        if number < len(self.hints):
            self._session["hints"] = number + 1
            write_row(self.name, hints=number + 1)
            print(f"Hint {number + 1} of {len(self.hints)}. {self.hints[number]}")
        else:
            print(f"No more hints. The solution: check.{self.name}.solution()")

    def solution(self) -> None:
        """Print the source of a right answer."""
        write_row(self.name, solution=True)
        print(inspect.getsource(self.answer).rstrip())


def _one_more_try(state, row) -> dict:
    """What a verdict adds to the learner's row: a later failure does not undo what was solved."""
    best = CORRECT if row.get("verdict") == CORRECT else state
    return {"verdict": best, "tries": row.get("tries", 0) + 1}


@contextmanager
def _usual_conditions() -> Iterator[None]:
    """Run a block with torch's usual settings, and then restore those that were there."""
    device, threads = torch.get_default_device(), torch.get_num_threads()
    try:
        with devices.own_conditions(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def _call(function, arguments):
    """Call with copies of the arguments, so that no call sees what another one changed."""
    with _usual_conditions():
        return function(*copy.deepcopy(arguments))


@contextmanager
def _short_output():
    """Show what the block prints after it, at most `_MOST_PRINTED` characters of it."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        if text := printed.getvalue():
            cut = "" if len(text) <= _MOST_PRINTED else f"\n… ({len(text):,} characters in all)\n"
            print(text[:_MOST_PRINTED], end=cut)


@contextmanager
def _notice_if_slow(name):
    """Say how to end a function that may never return."""
    words = f"{name}: still running; interrupt the kernel if your function may never return"
    notice = threading.Timer(_SLOW_SECONDS, print, [words], {"file": sys.stderr})
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def _parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def _code_of(answer):
    """The code of a learner's function, or of the `forward` of their class; None if it has none."""
    answer = answer.args[0] if isinstance(answer, partial) else answer
    return getattr(getattr(answer, "forward", answer), "__code__", None)


def _is_stub(answer) -> bool:
    """Whether a function that returned nothing does nothing either."""
    code = _code_of(answer)
    if code is None:
        return True
    stars = sum(bool(code.co_flags & flag) for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS))
    arguments = code.co_argcount + code.co_kwonlyargcount + stars
    return not code.co_names and code.co_nlocals == arguments


def _line_of(error, answer) -> list[str]:
    """A sentence with the learner's own line at which an error was raised; none if it has none."""
    code, frames = _code_of(answer), traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code and frame.filename == code.co_filename and frame.line]
    return [f"In line {own[-1].lineno}: {own[-1].line}."] if own else []


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """Normal random numbers in float64, for the cases of an exercise."""
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def shaped(arguments: str, *sizes: tuple) -> Callable[[torch.Generator], Iterator[Case]]:
    """Cases whose arguments are normal tensors of these shapes, or plain values.

        shaped("B T D, B T D, heads", (2, 5, 3, 1), (1, 1, 3, 3))

    Capital letters are axes, a word in small letters is a value. Each row of `sizes` has one number
    for each letter and word, in the order in which they first appear. A case is long if T > 64.
    """
    words = [argument.split() for argument in arguments.split(",")]
    names = list(dict.fromkeys(name for argument in words for name in argument))

    def cases(rng):
        for row in sizes:
            size = dict(zip(names, row, strict=True))
            yield Case(
                tuple(
                    size[argument[0]]
                    if argument[0].islower()
                    else normal(rng, *(size[axis] for axis in argument))
                    for argument in words
                ),
                long=size.get("T", 0) > 64,
            )

    return cases


def use_module(cls: type, x: torch.Tensor, weights: dict, *options: object) -> torch.Tensor:
    """Make a module, give it the weights, and apply it to x, in float64.

    Raises   NotImplementedError when the class is a stub without weights; ValueError when it has
             other weights
    """
    module = cls(*options)
    if module is None or (isinstance(module, torch.nn.Module) and not list(module.parameters())):
        raise NotImplementedError
    if not isinstance(module, torch.nn.Module):
        return module
    own = module.state_dict().keys()
    if unknown := ", ".join(sorted(own - weights.keys())):
        raise ValueError(f"your class has weights that were not asked for: {unknown}")
    if missing := ", ".join(sorted(weights.keys() - own)):
        raise ValueError(
            f"your class lacks the weights {missing}; is each an nn.Parameter or a module, and a "
            "list of modules an nn.ModuleList?"
        )
    module.double().load_state_dict(weights)
    y = module(x)
    return y if y is None else y.detach()


def _has_time(x, axis) -> bool:
    return isinstance(x, torch.Tensor) and x.ndim > axis


def _redraw_late(x, axis, start, generator):
    """The tensor with everything from `start` on redrawn."""
    x = x.clone()
    late = x.movedim(axis, 0)[start:]
    if x.is_floating_point():
        late.copy_(torch.randn(late.shape, generator=generator, dtype=torch.float64))
    else:
        late.add_(1)
    return x


def _to_tensors(value) -> list[torch.Tensor]:
    """A number, a tensor, or a tuple of such, as a list of tensors in float64.

    Raises   TypeError for anything else
    """
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _to_tensors(part)]
    if isinstance(value, bool | int | float):
        return [torch.tensor(value, dtype=torch.float64)]
    if isinstance(value, torch.Tensor) and not value.is_complex():
        return [value.detach().double()]
    raise TypeError(f"{type(value).__name__}")


def difference(got, wanted, within) -> Verdict:
    """How a result differs from the expected one: in type, in shape, in values, or not at all."""
    if isinstance(wanted, str) or (isinstance(wanted, bool) and isinstance(got, bool)):
        right = got == wanted
        return Verdict(CORRECT) if right else Verdict(WRONG_VALUES, f"Got {repr(got)[:200]}.")
    try:
        theirs = _to_tensors(got)
    except TypeError as error:
        return Verdict(WRONG_KIND, f"Got a {error}; wanted {_format_shapes(_to_tensors(wanted))}.")
    ours = _to_tensors(wanted)
    if [x.shape for x in theirs] != [x.shape for x in ours]:
        kind = "a list of " if isinstance(got, list) else ""
        return Verdict(
            WRONG_KIND, f"Got {kind}{_format_shapes(theirs)}; wanted {_format_shapes(ours)}."
        )
    for a, b in zip(theirs, ours, strict=True):
        finite = b[b.isfinite()].abs()
        scale = max(1.0, finite.max().item() if finite.numel() else 1.0)
        wrong = ~((a == b) | ((a - b).abs() <= within * scale))  # so that nan is wrong
        if wrong.any() and ((a - b).abs() <= _LAST_DIGITS * scale).all():
            guess = "is a part of it float32?" if within else "is a sum taken in another order?"
            return Verdict(WRONG_VALUES, f"{_OFF_A_LITTLE}: {guess}")
        if wrong.any():
            where = tuple(wrong.nonzero()[0].tolist())
            place = f"At {where} " if where else ""
            ours, theirs = _tell_apart(b[where].item(), a[where].item())
            text = f"{place}wanted {ours}, got {theirs}."
            return Verdict(WRONG_VALUES, text[0].upper() + text[1:])
    return Verdict(CORRECT)


def _tell_apart(*values: float) -> list[str]:
    """The values with as few digits as show that they differ."""
    short, exact = ([f"{value:.{digits}g}" for value in values] for digits in (4, 9))
    return exact if len(set(short)) == 1 else short


def _format_argument(name, value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{name} {tuple(value.shape)}" if value.ndim else f"{name} = {value.item():.4g}"
    if isinstance(value, dict):
        return f"{name} ({len(value)} tensors)"
    if callable(value):
        return f"{name} = {getattr(value, '__name__', type(value).__name__)}"
    return f"{name} = {reprlib.repr(value)}"


def _format_shapes(tensors) -> str:
    shapes = [f"shape {tuple(x.shape)}" if x.ndim else "one number" for x in tensors]
    return " and ".join(shapes)
