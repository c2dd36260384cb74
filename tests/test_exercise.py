"""An exercise: how a verdict is found, and what it says."""

import math
import re
import time

import pytest
import torch

from qllk.lab.exercise import (
    CORRECT,
    NOT_ATTEMPTED,
    RAISES,
    TOO_STEEP,
    WRONG_KIND,
    WRONG_VALUES,
    Case,
    Exercise,
    difference,
    normal,
    shaped,
    use_module,
)
from qllk.lab.folder import read_table
from qllk.model import masks

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
    assert said.startswith("test_exercise.total: wrong values. At (1,)")
    assert "check.test_exercise.total.hint()" in said
    some(lambda x: None)
    assert capsys.readouterr().out == "test_exercise.total: not attempted\n"


def test_hints_come_one_by_one_and_end_at_the_solution(capsys):
    some = exercise(masks.causal_mask)
    for _ in range(3):
        some.hint()
    one, two, last = capsys.readouterr().out.splitlines()
    assert (one, two) == ("Hint 1 of 2. One.", "Hint 2 of 2. Two.")
    assert "check.masks.causal_mask.solution()" in last
    some.solution()
    assert "def causal_mask(" in capsys.readouterr().out


# ---------------------------------------------------------------- whatever a function does


class Panic(BaseException):
    """What libraries in other languages raise; no Exception."""


class Dumb(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def fails_later(error, calls):
    """A wrong answer that works for some calls and then raises."""
    left = iter(range(calls))

    def my_total(x):
        if next(left, None) is None:
            raise error
        return x.flip(0).cumsum(0)

    return my_total


ERRORS = [ValueError("odd"), SystemExit(0), Panic("panic"), GeneratorExit(), Dumb(), MemoryError()]


@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_function_that_fails_at_any_call_gets_a_verdict(error, calls):
    some = exercise(time_axis=0)
    verdict = some.judge(fails_later(error, calls))
    assert verdict.state == RAISES
    assert type(error).__name__ in verdict.cause
    assert "raise error" in verdict.cause


def test_a_function_that_fails_when_its_growth_is_measured_gets_a_verdict():
    def my_total(x):
        if len(x) > 100:
            raise ValueError("too long for me")
        return x.cumsum(0)

    steep = exercise(steepest=1.1, sized=lambda T: (torch.zeros(T, dtype=torch.float64),))
    assert "too long for me" in steep.judge(my_total).cause
    by_numpy = steep.judge(lambda x: torch.from_numpy(x.numpy().cumsum(0)))
    assert by_numpy.state == CORRECT


def test_an_interrupt_of_a_check_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt):
        exercise().judge(fails_later(KeyboardInterrupt(), 0))


class Hostile:
    """A result whose every use raises."""

    def __eq__(self, other):
        raise RuntimeError("do not compare me")

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("do not show me")


class Scaled(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *_):
        raise RuntimeError("do not touch me")


ENDLESS = []
ENDLESS.append(ENDLESS)
RESULTS = {
    "a hostile object": Hostile(),
    "a hostile tensor": torch.ones(1).as_subclass(Scaled),
    "a list that contains itself": ENDLESS,
    "a tensor without values": torch.ones(1, device="meta"),
    "a sparse tensor": torch.eye(3).to_sparse(),
    "complex numbers": torch.ones(1, dtype=torch.complex64),
    "a long text": "x" * 10**6,
    "a class": Hostile,
    "a tensor of half the type": torch.ones(1, dtype=torch.float16),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("wanted", ["numbers", "a word"])
def test_a_result_of_any_kind_gets_a_short_verdict(result, wanted):
    some = exercise() if wanted == "numbers" else exercise(lambda x: "word")
    verdict = some.judge(lambda x: result)
    assert verdict.state in (WRONG_KIND, WRONG_VALUES, RAISES)
    assert len(verdict.cause) < 1000


def test_a_class_whose_init_fails_gets_a_verdict_with_its_line():
    class Broken(torch.nn.Module):
        def __init__(self, d):
            raise ValueError("not today")

        def forward(self, x):
            return x

    verdict = Exercise(Scale, use=use_module, cases=scales, hints=(), mistakes={}).judge(Broken)
    assert verdict.state == RAISES
    assert 'raise ValueError("not today")' in verdict.cause


def test_a_function_that_prints_a_lot_is_shown_in_part(capsys):
    def my_total(x):
        print("here " * 10_000)
        return x.cumsum(0)

    exercise().judge(my_total)
    said = capsys.readouterr().out
    assert said.startswith("here here")
    assert said.endswith("characters in all)\n")
    assert len(said) < 2100
    exercise().judge(lambda x: print(len(x)) or x.cumsum(0))
    assert capsys.readouterr().out.splitlines()[:2] == ["1", "3"]


def test_a_function_that_never_returns_says_how_to_end_it(capsys, monkeypatch):
    monkeypatch.setattr("qllk.lab.exercise._SLOW_SECONDS", 0.01)
    exercise().judge(lambda x: time.sleep(0.1) or x.cumsum(0))
    assert "total: still running; interrupt the kernel" in capsys.readouterr().err


def settings():
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_default_device(),
        torch.initial_seed(),
        torch.get_rng_state().tolist(),
    )


SPOILERS = {
    "precision": lambda: torch.set_default_dtype(torch.float64),
    "gradients": lambda: torch.set_grad_enabled(False),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "seed": lambda: torch.manual_seed(7),
    "device": lambda: torch.set_default_device("meta"),
    "random numbers": lambda: torch.randn(3),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
@pytest.mark.parametrize("fails", [False, True], ids=["and works", "and fails"])
def test_a_function_that_changes_torchs_settings_changes_them_for_no_one_else(spoil, fails):
    def my_total(x):
        spoil()
        return x.nothing if fails else x.cumsum(0)

    before = settings()
    assert exercise(time_axis=0).judge(my_total).state == (RAISES if fails else CORRECT)
    assert settings() == before


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_a_verdict_does_not_depend_on_the_settings_of_the_notebook(spoil):
    before = torch.get_num_threads()
    try:
        spoil()
        with torch.inference_mode():
            assert exercise().judge(lambda x: x.cumsum(0)).state == CORRECT
            learns = exercise(lambda x: 2 * x)
            assert learns.judge(slope_of_square).state == CORRECT
            verdict = exercise().judge(lambda x: torch.ones(len(x)).cumsum(0) * x.float())
            assert verdict.state != CORRECT
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_num_threads(before)
        torch.set_default_device("cpu")


def slope_of_square(x):
    x = x.requires_grad_()
    return torch.autograd.grad((x * x).sum(), x)[0]


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


def test_a_verdict_tells_close_numbers_apart_and_why_bits_differ():
    wanted = torch.tensor([5.9521, 100.0], dtype=torch.float64)
    near = difference(wanted + torch.tensor([3e-4, 1.0]), wanted, 1e-9)
    assert near.cause == "At (0,) wanted 5.9521, got 5.9524."
    assert "in another order?" in difference(wanted + 1e-6, wanted, 0.0).cause


def test_an_infinity_that_is_wanted_is_right_and_nan_never_is():
    wanted = torch.tensor([math.inf, 1.0])
    assert difference(wanted.clone(), wanted, 1e-9).state == CORRECT
    assert difference(torch.tensor([math.nan, 1.0]), wanted, 1e-9).state == WRONG_VALUES


# ---------------------------------------------------------------- cases by shape


def test_cases_by_shape_are_normal_tensors_and_plain_values():
    cases = list(shaped("B T D, B D, heads", (2, 5, 3, 7), (1, 70, 4, 1))(rng()))
    assert [[getattr(x, "shape", x) for x in case.arguments] for case in cases] == [
        [(2, 5, 3), (2, 3), 7],
        [(1, 70, 4), (1, 4), 1],
    ]
    assert [case.long for case in cases] == [False, True]
    x, y, _ = cases[0].arguments
    again = rng()
    assert torch.equal(x, normal(again, 2, 5, 3))
    assert torch.equal(y, normal(again, 2, 3))


def test_a_row_of_sizes_must_have_a_number_for_each_letter():
    with pytest.raises(ValueError, match="zip"):
        list(shaped("B T", (2,))(rng()))


def rng():
    return torch.Generator().manual_seed(5)


# ---------------------------------------------------------------- what is remembered


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    return tmp_path


def test_verdicts_tries_and_hints_are_kept_but_not_that_nothing_was_tried(home):
    one = exercise()
    one(lambda x: ...)
    assert read_table() == {}
    one(lambda x: -x)
    one.hint()
    one.hint()
    one.hint()
    one.solution()
    one(lambda x: x.cumsum(0))
    facts = {"verdict": CORRECT, "tries": 2, "hints": 2, "solution": True}
    assert read_table() == {one.name: facts}


def test_a_function_is_the_learners_once_it_passed(home, capsys):
    one = exercise()
    assert one.mine() is total
    one(lambda x: -x)
    assert one.mine() is total
    one(total)
    assert one.mine() is total
    assert capsys.readouterr().out.splitlines()[-1] == "test_exercise.total: your total"


def test_a_function_comes_back_in_another_session_and_is_judged_again(home, capsys):
    exercise()(right)
    again = exercise().mine()
    assert again is not right
    assert again(torch.ones(3)).tolist() == [1, 2, 3]
    path = home / "mine" / "test_exercise.py"
    path.write_text(path.read_text().replace("cumsum(0)", "cumsum(0) * 2"))
    assert exercise().mine() is total
    assert "the library's, since yours is now: wrong values" in capsys.readouterr().out
    path.write_text(path.read_text().replace("cumsum(0)", "cumsum(0"))
    assert exercise().mine() is total
    assert "the library's, since yours no longer runs (SyntaxError" in capsys.readouterr().out


def right(x):
    return x.cumsum(0)


def test_a_function_that_breaks_later_in_the_session_is_no_longer_used(home, capsys):
    factor = {"x": 1}

    def my_total(x):
        return x.cumsum(0) * factor["x"]

    one = exercise()
    one(my_total)
    assert one.mine() is my_total
    factor["x"] = 2
    assert one.mine() is total
    assert "the library's, since yours is now: wrong values" in capsys.readouterr().out
    factor["x"] = 1
    assert one.mine() is my_total


def test_what_cannot_be_kept_lasts_for_the_session(home, capsys):
    one = exercise()
    one(lambda x: x.cumsum(0))
    assert "(kept for this session only: it is not at the top of a cell" in capsys.readouterr().out
    assert one.mine() is not total
    assert exercise().mine() is total


def test_a_function_without_a_return_is_not_taken_for_a_stub():
    def my_total(x):
        print(x)

    assert str(exercise().judge(my_total)).startswith(f"{WRONG_KIND}. It returns nothing")


def test_an_error_is_shown_with_the_line_of_the_learner():
    def my_total(x):
        return x @ x.nope

    said = r"In line \d+: return x @ x\.nope\. Called with x \(1,\)\."
    assert re.search(said, exercise().judge(my_total).cause)


class Scale(torch.nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(d))

    def forward(self, x):
        return x * self.weight


class ScaleAndShift(Scale):
    def __init__(self, d):
        super().__init__(d)
        self.bias = torch.nn.Parameter(torch.zeros(d))


class ScaleByANumber(Scale):
    def __init__(self, d):
        super().__init__(d)
        self.factor = self.weight
        del self.weight


def scales(rng):
    yield Case((torch.ones(1, 3), {"weight": torch.full((3,), 2.0)}, 3))


def test_a_class_with_other_weights_is_told_which():
    scale = Exercise(Scale, use=use_module, cases=scales, hints=(), mistakes={})
    assert scale.judge(Scale).state == CORRECT
    said = "not asked for: bias. Called with x (1, 3), weights (1 tensors), d = 3."
    assert said in scale.judge(ScaleAndShift).cause
    assert "not asked for: factor" in scale.judge(ScaleByANumber).cause


def test_a_class_that_lacks_weights_is_told_which():
    def cases(rng):
        yield Case((torch.ones(1, 3), {"weight": torch.ones(3), "bias": torch.ones(3)}, 3))

    shift = Exercise(
        ScaleAndShift, use=use_module, truth=lambda x, *_: x, cases=cases, hints=(), mistakes={}
    )
    assert shift.judge(ScaleAndShift).state == CORRECT
    assert "your class lacks the weights bias; is each" in shift.judge(Scale).cause


def test_an_exercise_does_not_show_its_hints():
    assert repr(exercise()) == f"<exercise {exercise().name}: call it with your function>"


def test_a_later_failure_does_not_undo_what_was_solved(capsys):
    one = exercise()
    one(total)
    one(lambda x: x)
    assert read_table()[one.name]["verdict"] == CORRECT


@pytest.mark.parametrize("got", [0.0, 1e30, -math.inf, math.nan])
def test_what_should_be_infinite_is_not_right_when_it_is_anything_else(got):
    assert difference(got, math.inf, 1e-9).state == WRONG_VALUES
    row = torch.tensor([1.0, math.inf])
    assert difference(torch.tensor([1.0, got]), row, 1e-9).state == WRONG_VALUES
    assert difference(torch.tensor([2.0, math.inf]), row, 1e-9).state == WRONG_VALUES


def test_an_infinite_result_is_right_where_it_should_be():
    assert difference(math.inf, math.inf, 1e-9).state == CORRECT
