"""Axes of a figure: scales, ticks, numbers as text, and colours."""

from __future__ import annotations

import math
from typing import NamedTuple

# All colours are readable on a light and on a dark background.
BLUE, ORANGE = "#4c84c4", "#dd7f2e"
_SERIES = ("#2f9e8a", "#b0629e", "#8f8a2d", "#7b74cf", "#c4585a", "#5f8f9f", "#9a6b45")


def series_colour(index: int) -> str:
    """The colour of the curve or bar number `index`; colours repeat after the last one."""
    return _SERIES[index % len(_SERIES)]


class Scale(NamedTuple):
    """Maps the numbers from `low` to `high` to 0 … 1, linearly or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Values outside the scale are clamped, so that a spike is visible and covers nothing."""
        value = self.high if math.isnan(value) else min(max(value, self.low), self.high)
        transform = math.log if self.log else float
        low, high = transform(self.low), transform(self.high)
        return (transform(value) - low) / (high - low)


def ticks(scale: Scale, most: int = 6) -> list[tuple[float, str]]:
    """At most `most` round numbers inside the scale, each with its text."""
    found = _round_numbers_of_log(scale) if scale.log else []
    if len(found) < 3:  # a linear scale, or a narrow one
        raw = (scale.high - scale.low) / (most - 1)
        step = 10.0 ** math.floor(math.log10(raw))
        step *= next(m for m in (1, 2, 5, 10) if m * step >= raw)
        first = math.ceil(scale.low / step)
        found = [step * i for i in range(first, first + 2 * most) if step * i <= scale.high]
    found = found[:: math.ceil(len(found) / most)]
    return [(value, format_number(value)) for value in found]


def _round_numbers_of_log(scale: Scale) -> list[float]:
    """Powers of ten; if fewer than three fit, also their multiples by 3, or by 2 and 5."""
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for multiples in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        found = [m * 10.0**e for e in powers for m in multiples]
        found = [value for value in found if scale.low <= value <= scale.high]
        if len(found) >= 3:
            break
    return found


def format_number(value: float, digits: int = 3) -> str:
    """A number in few characters: `digits` significant digits, two below 1, and M for millions."""
    size = abs(value)
    if 100 <= size < 1e6:
        return f"{value:,.0f}"
    rounded = float(f"{value:.{digits if size >= 1 else 2}g}")
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if unit <= abs(rounded) < 1e15:
            return f"{rounded / unit:g}{letter}"
    return f"{rounded:g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
