"""Curves of bounded size, dense where a logarithmic step axis is."""

from __future__ import annotations

import math
from typing import NamedTuple


class Point(NamedTuple):
    """Some neighbouring steps in one: where they end, their lowest, highest and mean value."""

    step: int
    low: float
    high: float
    mean: float


class History:
    """A curve that keeps every spike, however long the run.

    Steps that share a place on the log axis share a point. A million steps make fewer than
    20 * density points. A run that goes back forgets what it had seen from there on.
    """

    def __init__(self, density: int):
        self._density = density  # points for each doubling of the step
        self._places: dict[int, list] = {}  # place -> [last step, low, high, total, count]
        self._last = 0

    def add(self, step: int, value: float) -> None:
        if step <= self._last:
            self._places = {p: here for p, here in self._places.items() if here[0] < step}
        self._last = step
        place = int(self._density * math.log2(step))
        here = self._places.setdefault(place, [step, value, value, 0.0, 0])
        here[0] = step
        here[1], here[2] = min(here[1], value), max(here[2], value)
        here[3] += value
        here[4] += 1

    def points(self) -> list[Point]:
        """Oldest first."""
        return [
            Point(step, low, high, total / count)
            for _, (step, low, high, total, count) in sorted(self._places.items())
        ]
