"""The pictures of the lessons as plain data: what is drawn, separate from how it is drawn.

`lab.pictures.charts` draws them as SVG for a widget, `plots` with matplotlib as a PNG that a
notebook stores. Each figure also has a digest, its numbers in words, for readers who cannot see
it and for tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .axes import BLUE, ORANGE, format_number


class Chart(NamedTuple):
    """Named curves over common axes."""

    lines: dict[str, list[tuple[float, float]]]  # name -> (x, y) pairs
    x: str
    y: str
    log: str = "xy"  # which axes are logarithmic
    levels: dict[str, float] = {}  # noqa: RUF012 - name -> a constant to compare with

    @property
    def drawable(self) -> dict[str, list[tuple[float, float]]]:
        """The lines without points that are not finite, or not above 0 on a logarithmic axis."""

        def fits(value, axis):
            return math.isfinite(value) and (value > 0 or axis not in self.log)

        lines = {
            name: [(a, b) for a, b in pairs if fits(a, "x") and fits(b, "y")]
            for name, pairs in self.lines.items()
        }
        return {name: pairs for name, pairs in lines.items() if pairs}

    @property
    def digest(self) -> str:
        ends = {name: pairs[-1][1] for name, pairs in self.drawable.items()} | self.levels
        words = ", ".join(f"{name} {format_number(value)}" for name, value in ends.items())
        return f"{self.y} over {self.x}, at the right end: {words or 'nothing'}."


class Heat(NamedTuple):
    """A table of coloured cells: the larger a value, the stronger its colour, blue or orange."""

    title: str
    rows: list[list[float]]
    row_names: list[str]
    column_names: list[str]
    numbers: bool = False  # printed in the cells
    most: float | None = None  # the magnitude of a fully coloured cell; default: the largest
    said: str = ""  # the digest, where the title alone would not say enough

    @property
    def full(self) -> float:
        """The magnitude from which on a cell is fully coloured."""
        sizes = [abs(value) for row in self.rows for value in row if math.isfinite(value)]
        return self.most or max(sizes, default=1.0) or 1.0

    def fill(self, value: float) -> tuple[str, float]:
        """Colour and opacity of a cell: blue for positive values, orange for negative ones."""
        opacity = min(1.0, abs(value) / self.full) if math.isfinite(value) else 1.0
        return BLUE if value >= 0 else ORANGE, opacity

    @property
    def digest(self) -> str:
        return self.said or f"{self.title}: {len(self.rows)} rows of {len(self.column_names)}."


class Bars(NamedTuple):
    """Named horizontal bars that start at zero, each labelled with its number."""

    title: str
    values: dict[str, float]
    unit: str

    @property
    def labels(self) -> list[str]:
        return [f"{format_number(value)} {self.unit}" for value in self.values.values()]

    @property
    def digest(self) -> str:
        words = (f"{name} {label}" for name, label in zip(self.values, self.labels, strict=True))
        return f"{self.title}: {', '.join(words)}."


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
    """The rows of a page, each a tuple of figures side by side.

    Raises   TypeError when something in it is not a figure
    """
    rows = [tuple(_as_list(row)) for row in _as_list(page)]
    for figure in (figure for row in rows for figure in row):
        if not isinstance(figure, Figure):
            raise TypeError(f"a figure is a Chart, Heat, Bars or Note, got {figure!r}")
    return rows


def _as_list(value) -> list:
    return list(value) if type(value) in (list, tuple) else [value]  # a figure is a NamedTuple


def digest(page: Page) -> str:
    """What a page says, in words."""
    return "\n".join(figure.digest for row in rows_of(page) for figure in row)
