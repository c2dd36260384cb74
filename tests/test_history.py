"""A curve of bounded size that keeps its spikes."""

import pytest

from qllk.lab.live.history import History


def test_a_history_keeps_spikes_and_stays_small():
    history = History(density=32)
    for step in range(1, 200_001):
        history.add(step, 1000.0 if step == 123_456 else 1.0)
    points = history.points()
    assert len(points) < 20 * 32
    assert max(point.high for point in points) == 1000.0
    assert [point.step for point in points[:32]] == list(range(1, 33))
    assert points[-1].step == 200_000


def test_a_history_that_goes_back_forgets_what_came_after():
    history = History(density=32)
    for step in [1, 2, 3, 4, 2, 3]:
        history.add(step, float(step == 4))
    assert [(point.step, point.high) for point in history.points()] == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("value", ["much", None, [1.0], {"a": 1.0}])
def test_a_value_that_is_no_number_is_refused_and_leaves_the_curve_as_it_was(value):
    history = History(density=32)
    history.add(1, 2.0)
    with pytest.raises((TypeError, ValueError)):
        history.add(1, value)
    assert history.points() == [(1, 2.0, 2.0, 2.0)]
