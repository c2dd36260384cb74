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
    def counts_in_x(self) -> bool:
        """Whether all x are whole numbers."""
        return all(float(x).is_integer() for pairs in self.drawable.values() for x, _ in pairs)

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
        if self.said:
            return self.said
        values = [value for row in self.rows for value in row if math.isfinite(value)] or [0.0]
        low, high = format_number(min(values)), format_number(max(values))
        size = f"{len(self.rows)} rows of {len(self.column_names)}"
        return f"{self.title}: {size}, from {low} to {high}."


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


_SIDE, _ABOVE = 0.06, 0.2  # columns left and right of a box, and rows above and below it, left free


class _Edges(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def towards(self, other: _Edges) -> tuple[float, float]:
        """Where the straight way from this centre to the other's leaves the box."""
        (x, y), (to_x, to_y) = self.centre, other.centre
        dx, dy = to_x - x, to_y - y
        to_side = (self.right - x) / abs(dx) if dx else math.inf
        to_top = (self.bottom - y) / abs(dy) if dy else math.inf
        share = min(to_side, to_top, 1.0)
        return x + share * dx, y + share * dy


class Box(NamedTuple):
    """A box of a diagram; its place and its width are in columns and rows of a grid."""

    text: str  # of one line or several
    column: float
    row: float
    width: float = 1.0
    colour: str | None = None  # default: a frame and no filling
    framed: bool = True  # else only the text

    @property
    def edges(self) -> _Edges:
        """Where the box is drawn, in columns and rows."""
        right, bottom = self.column + self.width - _SIDE, self.row + 1 - _ABOVE
        return _Edges(self.column + _SIDE, self.row + _ABOVE, right, bottom)


class Diagram(NamedTuple):
    """Boxes on a grid, and arrows from box to box, both given by the names of the boxes."""

    title: str
    boxes: dict[str, Box]
    arrows: list[tuple[str, str]] = []  # noqa: RUF012
    said: str = ""  # the digest; default: which box leads to which
    down: bool = False  # arrows lead from the bottom of a box to the top of another

    @property
    def size(self) -> tuple[float, float]:
        """Columns and rows."""
        boxes = self.boxes.values()
        return max(b.column + b.width for b in boxes), max(b.row for b in boxes) + 1

    @property
    def letters(self) -> float:
        """How many letters a column must hold, so that each text fits into its box."""
        return max(
            max(map(len, box.text.split("\n"))) / (box.width - 2 * _SIDE)
            for box in self.boxes.values()
        )

    @property
    def lines_of_text(self) -> int:
        """How many lines of text a row must hold."""
        return max(box.text.count("\n") + 1 for box in self.boxes.values())

    @property
    def paths(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Start and end of each arrow; default: the straight way between the centres of boxes."""
        edges = [(self.boxes[a].edges, self.boxes[b].edges) for a, b in self.arrows]
        if self.down:
            return [((a.centre[0], a.bottom), (b.centre[0], b.top)) for a, b in edges]
        return [(a.towards(b), b.towards(a)) for a, b in edges]

    @property
    def digest(self) -> str:
        leads: dict[str, list[str]] = {}
        for start, end in self.arrows:
            leads.setdefault(start, []).append(self._say(end))
        words = (f"{self._say(start)} → {', '.join(ends)}" for start, ends in leads.items())
        return self.said or f"{self.title}: {'; '.join(words)}."

    def _say(self, name):
        return self.boxes[name].text.replace("\n", " ")


class Note(NamedTuple):
    """A title and a few lines of text."""

    title: str
    lines: list[str]

    @property
    def digest(self) -> str:
        return " ".join([self.title, *self.lines])


Figure = Chart | Heat | Bars | Diagram | Note
Page = Figure | list  # a figure, or rows from top to bottom; a row is a figure or a tuple of them


def rows_of(page: Page) -> list[tuple[Figure, ...]]:
    """The rows of a page, each a tuple of figures side by side.

    Raises   TypeError when something in it is not a figure
    """
    rows = [tuple(_as_list(row)) for row in _as_list(page)]
    for figure in (figure for row in rows for figure in row):
        if not isinstance(figure, Figure):
            raise TypeError(f"a figure is a Chart, Heat, Bars, Diagram or Note, got {figure!r}")
    return rows


def _as_list(value) -> list:
    return list(value) if type(value) in (list, tuple) else [value]  # a figure is a NamedTuple


def digest(page: Page) -> str:
    """What a page says, in words."""
    return "\n".join(figure.digest for row in rows_of(page) for figure in row)
