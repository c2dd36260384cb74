"""A learning curve of bounded size, dense where a logarithmic step axis is dense."""

from __future__ import annotations

import math
from typing import NamedTuple


class Point(NamedTuple):
    """Neighbouring steps merged into one: the last step, and their lowest, highest, mean value."""

    step: int
    low: float
    high: float
    mean: float


class History:
    """A curve that keeps every spike, however long the run.

    Steps that share a place on the logarithmic axis share a point: a million steps make fewer
    than 20 * density points. When a run returns to an earlier step, the points from that step on
    are dropped.
    """

    def __init__(self, density: int):
        self._density = density  # points per doubling of the step
        self._places: dict[int, list] = {}  # place -> [last step, low, high, total, count]
        self._last = 0

    def add(self, step: int, value: float) -> None:
        """Add the value of a step.  Raises  ValueError, TypeError when it is not a number"""
        value = float(value)  # before anything changes
        if step <= self._last:
            self._places = {p: entry for p, entry in self._places.items() if entry[0] < step}
        self._last = step
        place = int(self._density * math.log2(step))
        entry = self._places.setdefault(place, [step, value, value, 0.0, 0])
        entry[0] = step
        entry[1], entry[2] = min(entry[1], value), max(entry[2], value)
        entry[3] += value
        entry[4] += 1

    def points(self) -> list[Point]:
        """All points, the earliest step first."""
        return [
            Point(step, low, high, total / count)
            for _, (step, low, high, total, count) in sorted(self._places.items())
        ]
