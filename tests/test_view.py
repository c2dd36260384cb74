"""The panel's frame: HTML text made of a snapshot."""

import random

import pytest
from run_helpers import make

from qllk.lab.live.run import Note, Run
from qllk.lab.live.view import render
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
