"""Lesson 07: the two sides that it compares, and the clock that it compares them with."""

import itertools
import time

import pytest
import torch
from helpers import same

from qllk.lab.lessons import fusing
from qllk.probes import measure


@pytest.mark.parametrize("parts", [3, 4])
def test_together_gives_what_apart_gives(parts):
    apart = fusing.Apart(5, parts).double()
    together = fusing.Together(apart).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    for one, other in zip(together(x), apart(x), strict=True):
        same(one, other, atol=1e-6)  # copied through float32


def test_only_time_and_layers_differ_between_the_two_sides():
    for width, rows, parts in itertools.product((8, 32), (1, 16), fusing.PARTS):
        _, layers, work, held = fusing.projections(width, rows, parts)
        n = fusing.PARTS[parts]
        assert layers.values == {"separate": n, "fused": 1}
        assert set(work.values.values()) == {2 * n * rows * width**2}
        assert set(held.values.values()) == {n * (width**2 + width)}


def test_the_stopwatch_knows_slow_from_quick_and_gives_the_threads_back():
    before = torch.get_num_threads()
    slow, quick = measure.compare_seconds([lambda: time.sleep(0.01), lambda: None], rounds=1)
    assert slow > 0.01 > 10 * quick
    with pytest.raises(ZeroDivisionError):
        measure.compare_seconds([lambda: 1 / 0])
    assert torch.get_num_threads() == before


def test_the_widget_draws_at_all_corners():
    some = fusing.projections.widget()
    for width, rows, parts in itertools.product((16, 256), (1, 256), fusing.PARTS):
        for name, value in (("width", width), ("rows", rows), ("parts", parts)):
            some.controls[name].value = value
        some.wait()
        assert "times as fast" in some.picture.value
