"""The lessons' pictures as plain data: what is drawn, apart from who draws it.

`charts` draws them as SVG for a widget, `plots` with matplotlib as a PNG that is stored in a
notebook. Each says its numbers in words, for those who do not see it and for the tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .axes import short


class Chart(NamedTuple):
    """Curves, named, over a common axis."""

    lines: dict[str, list[tuple[float, float]]]  # name -> (x, y) pairs
    x: str
    y: str
    log: str = "xy"  # which axes are logarithmic
    levels: dict[str, float] = {}  # noqa: RUF012 - name -> a level to compare with

    @property
    def drawable(self) -> dict[str, list[tuple[float, float]]]:
        """Without points that are not finite, or not above 0 on a logarithmic axis."""

        def fits(value, axis):
            return math.isfinite(value) and (value > 0 or axis not in self.log)

        kept = {
            name: [(a, b) for a, b in pairs if fits(a, "x") and fits(b, "y")]
            for name, pairs in self.lines.items()
        }
        return {name: pairs for name, pairs in kept.items() if pairs}

    @property
    def digest(self) -> str:
        ends = [f"{name} {short(pairs[-1][1])}" for name, pairs in self.drawable.items()]
        ends += [f"{name} {short(level)}" for name, level in self.levels.items()]
        return f"{self.y} over {self.x}, at the right end: {', '.join(ends) or 'nothing'}."


class Heat(NamedTuple):
    """A table of cells, as full of colour as their size: blue above zero, orange below."""

    title: str
    rows: list[list[float]]
    row_names: list[str]
    column_names: list[str]
    numbers: bool = False  # printed in the cells
    most: float | None = None  # the size of a full cell; the largest there is unless given
    said: str = ""  # the digest, if the title does not say it all

    @property
    def full(self) -> float:
        sizes = [abs(value) for row in self.rows for value in row if math.isfinite(value)]
        return self.most or max(sizes, default=1.0) or 1.0

    @property
    def digest(self) -> str:
        return self.said or f"{self.title}: {len(self.rows)} rows of {len(self.column_names)}."


class Bars(NamedTuple):
    """Named horizontal bars from zero, each with its number."""

    title: str
    values: dict[str, float]
    unit: str

    @property
    def digest(self) -> str:
        said = ", ".join(f"{name} {short(v)} {self.unit}" for name, v in self.values.items())
        return f"{self.title}: {said}."


class Note(NamedTuple):
    """A title and a few lines of text."""

    title: str
    lines: list[str]

    @property
    def digest(self) -> str:
        return " ".join([self.title, *self.lines])


Figure = Chart | Heat | Bars | Note
Page = Figure | list  # a figure, or rows from top to bottom; a row is a figure or a tuple of them


def rows_of(page: Page) -> list[tuple[Figure, ...]]:
    """The page's rows, each a tuple of figures side by side."""
    if isinstance(page, Figure):
        return [(page,)]
    return [(row,) if isinstance(row, Figure) else tuple(row) for row in page]


def digest(page: Page) -> str:
    """What a page says in words."""
    return "\n".join(figure.digest for row in rows_of(page) for figure in row)
