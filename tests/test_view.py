"""The panel's frame: HTML text made of a snapshot."""

import random

import pytest
from run_helpers import make

from qllk.lab.live.history import Point
from qllk.lab.live.run import Note, Run
from qllk.lab.live.view import Earlier, render
from qllk.training.previews import Preview


def snapshot(**changes):
    return Run(make, f"snapshot {random.random()}").snapshot()._replace(**changes)


def test_a_view_is_drawn_from_plain_data_and_escaped():
    nasty = "<img src=x onerror=alert(1)>"
    now = snapshot(
        model=nasty,
        corpus=nasty,
        doing=nasty,
        sample=(3, Preview("it writes", "import ", f"{nasty}\x00\x1b\ufffd\tend")),
        notes=[Note(1, nasty, bad=True)],
        marks=[(1, nasty)],
        baselines={nasty: 2.0},
    )
    frame = render(now, 100)
    assert not any("<img" in part for part in frame[:-1])
    assert "···    end" in frame.sample
    assert "q-bad" in frame.notes


def test_the_size_of_a_state_is_told_where_there_is_one():
    some = Run(make, "sizes")
    some.advance(1)
    now = some.snapshot()
    sized = now._replace(record=now.record._replace(state_bytes=2_297_640))
    assert "<small>state</small><b>2.2 MiB</b><small>after a window" in render(sized, 100).facts
    without = now._replace(record=now.record._replace(state_bytes=0))
    assert "<small>state</small><b>–</b>" in render(without, 100).facts


@pytest.mark.parametrize(
    ("state", "pause", "enabled"),
    [
        ("idle", "Pause", {"start", "reset", "load"}),
        ("running", "Pause", {"pause", "stop", "switch", "reset", "load"}),
        ("paused", "Resume", {"pause", "stop", "switch", "reset", "load"}),
        ("done", "Pause", {"start", "reset", "load"}),
    ],
)
def test_only_buttons_that_make_sense_are_enabled(state, pause, enabled):
    frame = render(snapshot(state=state), 100)
    assert (frame.pause, frame.enabled) == (pause, enabled)


def test_the_run_before_is_compared_by_what_was_chosen_and_at_the_same_step():
    points = [Point(step, 1, 9, 8.0 - step / 10) for step in (5, 10, 20)]
    now = snapshot(train=points, valid=[(10, 6.5), (20, 5.25)])
    before = Earlier({"model": "gpt-nano", "lr": 0.1}, [(4, 7.0), (8, 6.0), (12, 5.5)])
    older = Earlier({"model": "bert-nano"}, [(4, 7.75)])
    frame = render(now, 100, {"model": "qllk-3", "lr": 0.1, "batch": 2}, [older, before])
    assert "the run before: model gpt-nano → qllk-3; at step 12 it had 5.50" in frame.status
    assert "this one 6.50" in frame.status
    assert frame.loss.count("<polyline") == 4
    assert "earlier" in frame.loss
    same = render(now, 100, before.settings, [before])
    assert "the run before: nothing differs; at step 12" in same.status
    alone = render(now, 100, before.settings)
    assert "the run before" not in alone.status
    assert "earlier" not in alone.loss


def test_an_earlier_run_without_held_out_losses_is_drawn_by_its_training():
    points = [Point(step, 1, 9, 8.0 - step / 10) for step in (5, 10)]
    assert Earlier.of(snapshot(train=points), {}).curve == [(5, 7.5), (10, 7.0)]
    assert Earlier.of(snapshot(train=points, valid=[(10, 6.0)]), {}).curve == [(10, 6.0)]
