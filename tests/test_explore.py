"""Explorers: every control is moved through its whole range, every button pressed twice."""

import threading
import time
from importlib import import_module

import ipywidgets
import pytest
from helpers import DRAWN

from qllk.lab.explore import Explorer, Runner, choice, explorer, line, slider, switch
from qllk.lab.lessons.exercises import EXERCISES
from qllk.study.figures import Bars, Note


def threads():
    return [t for t in threading.enumerate() if t.name == "qllk-explorer"]


def draw(n=1, rule="a", on=False, text="t"):
    if rule == "bad":
        raise ValueError("no <b>rule</b>")
    return Bars(f"{rule} {on} {text}", {"n": n}, "things")


def controls():
    return {
        "n": slider("n", [1, 2, 3])(2),
        "rule": choice("rule", ["a", "b", "bad"])("a"),
        "on": switch("on")(False),
        "text": line("text")("t"),
    }


def settled(explorer):
    explorer.wait()
    return explorer.picture.value


def test_the_first_picture_is_there_at_once():
    explorer = Explorer("How many?", controls(), draw)
    assert ">2 things<" in explorer.picture.value
    assert "How many?" in explorer.widget.children[0].value
    assert not threads()


def test_a_control_that_moves_changes_the_picture():
    explorer = Explorer("How many?", controls(), draw)
    for name, value in (("n", 3), ("rule", "b"), ("on", True), ("text", "u")):
        before = explorer.picture.value
        explorer.controls[name].value = value
        assert settled(explorer) != before
    explorer.buttons["reset"].click()
    assert ">2 things<" in settled(explorer)
    assert explorer.controls["rule"].value == "a"


def test_an_error_is_shown_kept_and_gone_with_the_next_picture():
    explorer = Explorer("How many?", controls(), draw)
    explorer.controls["rule"].value = "bad"
    with pytest.raises(ValueError, match="no <b>rule</b>"):
        explorer.wait()
    assert "ValueError: no &lt;b&gt;rule&lt;/b&gt;" in explorer.picture.value
    explorer.controls["rule"].value = "b"
    assert "things" in settled(explorer)


@pytest.mark.parametrize("error", [SystemExit("<b>out"), BaseException("<b>panic")])
def test_an_explorer_goes_on_after_an_error_of_any_kind(error):
    def draw(n):
        if n == 2:
            raise error
        return Note(f"n {n}", [])

    explorer = Explorer("How many?", {"n": slider("n", [1, 2, 3])(1)}, draw)
    explorer.controls["n"].value = 2
    with pytest.raises(type(error)):
        explorer.wait()
    assert f"{type(error).__name__}: &lt;b&gt;" in explorer.picture.value
    explorer.controls["n"].value = 3
    assert "n 3" in settled(explorer)


def test_only_the_latest_request_is_drawn():
    seen, gate = [], threading.Event()

    def slow(n):
        seen.append(n)
        if len(seen) > 1:
            gate.wait(10)
        return Note(f"n {n}", [])

    explorer = Explorer("How many?", {"n": slider("n", list(range(9)))(0)}, slow)
    for n in range(1, 9):
        explorer.controls["n"].value = n
    gate.set()
    assert "n 8" in settled(explorer)
    assert len(seen) <= 4


def endless(n=1):
    count = 0
    while True:
        count += 1
        yield Note(f"page {count} of {n}", [])
        time.sleep(0.01)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_runner_runs_when_told_and_stops_when_told():
    runner = Runner("How long?", {"n": slider("n", [1, 2])(1)}, endless)
    assert "Press Run." in runner.picture.value
    runner.controls["n"].value = 2
    assert not threads()
    for _ in range(2):
        runner.buttons["run"].click()
        wait_for(lambda: "of 2" in runner.picture.value)
    runner.buttons["stop"].click()
    runner.buttons["stop"].click()
    assert "of 2" in settled(runner)
    assert not threads()
    runner.buttons["reset"].click()
    assert "Press Run." in settled(runner)
    assert runner.controls["n"].value == 1


# ---------------------------------------------------------------- the lessons' own


def drawing(lesson):
    return getattr(import_module(f"qllk.lab.lessons.{lesson}"), DRAWN[lesson])


def test_every_lesson_has_a_widget():
    assert {*DRAWN, "training"} == set(EXERCISES)


def values_of(control):
    match control:
        case ipywidgets.Dropdown() | ipywidgets.RadioButtons():
            return [value for _, value in control._options_full]
        case ipywidgets.Checkbox():
            return [False, True]
        case ipywidgets.Text():
            return ["a", control.value, "\u00e9 <b>", control.value * 3]
    raise AssertionError(f"a kind of control that this test cannot move: {control}")


@pytest.fixture(params=DRAWN)
def shown(request):
    made = drawing(request.param).widget()
    yield made
    made.wait()


@pytest.mark.slow
def test_every_control_of_a_lesson_is_moved_through_its_range(shown):
    runs = isinstance(shown, Runner)
    assert 1 <= len(shown.controls) <= 5
    for name, control in shown.controls.items():
        pictures = set()
        for value in values_of(control):
            control.value = value
            if runs:
                shown.buttons["run"].click()
                wait_for(lambda: "Press Run." not in shown.picture.value)
                shown.buttons["stop"].click()
            pictures.add(settled(shown))
        assert len(pictures) > 1 or runs, f"{name} has no visible effect"
        shown.buttons["reset"].click()
        shown.wait()
    assert not threads()


@pytest.mark.slow
def test_every_button_of_a_lesson_is_pressed_twice(shown):
    for button in shown.buttons.values():
        button.click()
        button.click()
    shown.buttons.get("stop", shown.buttons["reset"]).click()
    shown.wait()
    assert "q-bad" not in shown.picture.value
    assert not threads()


def test_controls_start_at_the_defaults_of_the_function():
    @explorer("How many?", n=slider("n", [1, 2, 3]), on=switch("on"))
    def draw_page(n=2, on=True, other="kept"):
        return Bars(f"{on} {other}", {"n": n}, "things")

    first, second = draw_page.widget(), draw_page.widget()
    assert {name: c.value for name, c in first.controls.items()} == {"n": 2, "on": True}
    assert ">2 things<" in settled(first)
    first.controls["n"].value = 3
    assert ">3 things<" in settled(first)
    assert second.controls["n"].value == 2  # each widget has controls of its own
    assert draw_page(n=1).values == {"n": 1}
