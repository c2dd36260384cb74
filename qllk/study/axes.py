"""Axes of a figure: scales, ticks, numbers as text, and the colours of series."""

from __future__ import annotations

import math
from typing import NamedTuple

POSITIVE, NEGATIVE = "#4c84c4", "#dd7f2e"
LAYERS = ("#2f9e8a", "#b0629e", "#8f8a2d", "#7b74cf", "#c4585a", "#5f8f9f", "#9a6b45")


class Scale(NamedTuple):
    """Numbers from `low` to `high` as shares from 0 to 1, straight or by their logarithm."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Values beyond the ends stay at them, so that a spike is seen and covers nothing."""
        value = self.high if math.isnan(value) else min(max(value, self.low), self.high)
        bend = math.log if self.log else float
        return (bend(value) - bend(self.low)) / (bend(self.high) - bend(self.low))


def ticks(scale: Scale, most=6) -> list[tuple[float, str]]:
    """A few round numbers inside the scale, with their texts."""
    found = round_numbers(scale) if scale.log else []
    if len(found) < 3:  # a straight scale, or a narrow one
        raw = (scale.high - scale.low) / (most - 1)
        step = 10.0 ** math.floor(math.log10(raw))
        step *= next(m for m in (1, 2, 5, 10) if m * step >= raw)
        first = math.ceil(scale.low / step)
        found = [step * i for i in range(first, first + 2 * most) if step * i <= scale.high]
    found = found[:: math.ceil(len(found) / most)]
    return [(value, short(value)) for value in found]


def round_numbers(scale: Scale) -> list[float]:
    """Powers of ten, or if those are too few, also three or two and five times them."""
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        found = [m * 10.0**e for e in powers for m in steps]
        found = [value for value in found if scale.low <= value <= scale.high]
        if len(found) >= 3:
            break
    return found


def short(value: float, digits: int = 3) -> str:
    """A number in few letters: `digits` of them count, two below 1; millions are an M."""
    size = abs(value)
    if 100 <= size < 1e6:
        return f"{value:,.0f}"
    rounded = float(f"{value:.{digits if size >= 1 else 2}g}")
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if unit <= abs(rounded) < 1e15:
            return f"{rounded / unit:g}{letter}"
    return f"{rounded:g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
