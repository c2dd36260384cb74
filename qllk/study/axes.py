"""Axes of a figure: scales, ticks, numbers as text, and colours."""

from __future__ import annotations

import colorsys
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# All colours are readable on a light and on a dark background.
BLUE, ORANGE, GREY = "#4c84c4", "#dd7f2e", "#858585"
_TEAL, _PURPLE, _OLIVE, _VIOLET = "#2f9e8a", "#b0629e", "#8f8a2d", "#7b74cf"
_RED, _SLATE, _BROWN, _LEAF = "#c4585a", "#5f8f9f", "#9a6b45", "#5c9a3c"
_FREE = (BLUE, ORANGE, _VIOLET, _BROWN, _SLATE, _OLIVE, _RED, _LEAF, _PURPLE, _TEAL)

# A kind of series, by words in its name, has one colour in the whole course; the first that fits.
_KINDS = (
    (r"unigram|bigram|trigram|bz2|lzma|zpaq|uniform|guess|floor|ln 256", GREY),
    (r"published|as written|qllk 1|^1\.[01]$", _RED),
    (r"(no|without) memory", _SLATE),
    (r"(no|without) (n-grams|hashing)", _BROWN),
    (r"control|\bno\b|without|qllk-2-local", _OLIVE),
    (r"linear|matrix|chunks", BLUE),
    (r"attention|softmax|\btable\b", _PURPLE),
    (r"\bgpt", _VIOLET),
    (r"address|recall|qllk-3|\byour", _LEAF),
    (r"\bsums?\b|cumsum|kernel|qllk|corrected", _TEAL),
    (r"^training", BLUE),
    (r"held out", ORANGE),
)


def colour_of_kind(name: str) -> str | None:
    """The colour of the kind of model, baseline or loss that a name tells; None for any other."""
    return next((colour for words, colour in _KINDS if re.search(words, name.lower())), None)


def series_colours(names: Iterable[str]) -> list[str]:
    """A colour for each curve of a chart, that of its kind where it has one; no two are equal."""
    found: dict[str, str] = {}
    for name in (names := list(names)):
        kind = colour_of_kind(name)
        if kind and kind not in found.values():
            found[name] = kind
    free = (colour for colour in itertools.chain(_FREE, _hues()) if colour not in found.values())
    return [found[name] if name in found else next(free) for name in names]


def _hues() -> Iterator[str]:
    """Endless further colours, each far from the few before it."""
    for i in itertools.count():
        red, green, blue = colorsys.hls_to_rgb(0.618 * i % 1, 0.5, 0.4)
        yield f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"


def bar_colours(names: Iterable[str]) -> list[str]:
    """One colour for all bars, or that of each bar's kind where at least half of them have one."""
    kinds = [colour_of_kind(name) for name in names]
    by_kind = 2 * sum(map(bool, kinds)) >= len(kinds)
    return [kind if by_kind and kind else BLUE for kind in kinds]


class Scale(NamedTuple):
    """Maps the numbers from `low` to `high` to 0 … 1, linearly or by their logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False  # its values are whole numbers, so its ticks are as well

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
        step = max(step, 1.0) if scale.whole else step
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
    rounded = float(f"{value:.{digits if size >= 1 else 2}g}") + 0.0  # no "-0"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if unit <= abs(rounded) < 1e15:
            return f"{rounded / unit:g}{letter}"
    return f"{rounded:g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def spread(wanted: list[float], gap: float, first: float, last: float) -> list[float]:
    """Move ascending places as little as needed to be at least `gap` apart.

    They stay between `first` and `last`, or above `first` where there is no room for all.
    """
    groups: list[tuple[float, int]] = []  # of places that touch: where it starts, less the gaps
    for i, place in enumerate(wanted):
        start, size = place - gap * i, 1
        while groups and groups[-1][0] > start:
            other, more = groups.pop()
            start, size = (start * size + other * more) / (size + more), size + more
        groups.append((start, size))
    starts = [start for start, size in groups for _ in range(size)]
    most = last - gap * (len(wanted) - 1)
    return [min(max(start, first), most) + gap * i for i, start in enumerate(starts)]
