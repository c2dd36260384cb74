"""Figures drawn by matplotlib, as PNGs that a notebook stores, so that everybody sees them.

`picture(figure)` as the last line of a cell shows it. Its text form is the digest, which a test
that cannot look at pictures compares.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

from ..files import write_atomically
from .axes import GREY, Scale, bar_colours, format_number, series_colours, spread, ticks
from .figures import Bars, Chart, Diagram, Figure, Heat, Note, Page, digest, rows_of

_WIDTH_INCHES = 5.6  # of one figure
_LABEL_LETTERS = 32  # in a line of a label
_ROW_INCHES = 0.26  # of a table or of bars
_NUMBER_INCHES = 0.4  # the width of a table's cell with a number
_LETTER_INCHES, _LINE_INCHES = 0.08, 0.14  # of text
_MOST_DOTS = 40  # of a curve
_DASHES = ("--", ":", "-.")  # of levels, in turn
# LaTeX, which a user may have asked of matplotlib, would read names as its commands, or be missing.
_STYLE = {
    **{"font.size": 9, "axes.spines.top": False, "axes.spines.right": False},
    "text.usetex": False,
}


def picture(page: Page) -> _Picture:
    """A figure, or a page of figures, shown by the cell that ends with it.

    Raises   TypeError when the page holds something that is not a figure
    """
    return _Picture(page)


class _Picture:
    """A page that is drawn when a notebook shows it."""

    def __init__(self, page: Page):
        self._page, self._rows = page, rows_of(page)

    def __repr__(self):
        return digest(self._page)

    def _repr_png_(self) -> bytes:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            canvas = io.BytesIO()
            self._draw().savefig(canvas, format="png", dpi=90, metadata={"Software": None})
        return canvas.getvalue()

    def _draw(self):
        from matplotlib.figure import Figure

        rows = self._rows
        heights = [max(_height_inches(figure) for figure in row) for row in rows]
        width = max(sum(_width_inches(figure) for figure in row) for row in rows)
        whole = Figure(figsize=(width, sum(heights)))
        whole.set_layout_engine("constrained", w_pad=0.1, h_pad=0.07)
        parts = whole.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=True):
            ratios = [_width_inches(figure) for figure in row]
            places = part.subplots(1, len(row), width_ratios=ratios, squeeze=False)[0]
            for axes, figure in zip(places, row, strict=True):
                _PLOTTERS[type(figure)](figure, axes)
        return whole


def save_picture(page: Page, path: Path) -> None:
    """Write a figure or a page of them as a PNG."""
    write_atomically(path, _Picture(page)._repr_png_())


def _height_inches(figure: Figure) -> float:
    match figure:
        case Heat():
            return 0.8 + _ROW_INCHES * len(figure.rows)
        case Bars():
            return 0.6 + _ROW_INCHES * len(figure.values)
        case Diagram():
            row = 0.26 + _LINE_INCHES * figure.lines_of_text
            return 0.35 + row * figure.size[1]
        case Note():
            return 0.5 + 0.2 * len(figure.lines)
    return 2.9


def _width_inches(figure: Figure) -> float:
    match figure:
        case Heat():
            names = max(map(len, figure.row_names), default=0)
            cells = _cell_inches(figure) * len(figure.column_names)
            title = _LETTER_INCHES * len(figure.title)
            return max(2.8, 0.4 + _LETTER_INCHES * names + max(cells, title))
        case Diagram():
            boxes = (_LETTER_INCHES * figure.letters + 0.08) * figure.size[0]
            return max(boxes, 0.3 + _LETTER_INCHES * len(figure.title))
        case Note():
            return 0.3 + _LETTER_INCHES * max(map(len, [figure.title, *figure.lines]))
    return _WIDTH_INCHES


def _cell_inches(heat: Heat) -> float:
    return _NUMBER_INCHES if heat.numbers else _ROW_INCHES


def _plot_chart(chart: Chart, axes) -> None:
    lines = chart.drawable
    colours = series_colours(lines)
    for pairs, colour in zip(lines.values(), colours, strict=True):
        style = ".-" if len(pairs) <= _MOST_DOTS else "-"
        axes.plot(*zip(*pairs, strict=True), style, color=colour)
    for i, level in enumerate(chart.levels.values()):
        axes.axhline(level, color=GREY, linestyle=_DASHES[i % len(_DASHES)], linewidth=1)
    axes.set(xlabel=chart.x, ylabel=textwrap.fill(chart.y, _LABEL_LETTERS))
    if "y" not in chart.log:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for axis, whole in ((axes.xaxis, chart.counts_in_x), (axes.yaxis, False)):
        log = axis.axis_name in chart.log
        if log:
            axes.set(**{f"{axis.axis_name}scale": "log"})
        found = ticks(Scale(*axis.get_view_interval(), log, whole))
        axis.set_ticks([value for value, _ in found], [words for _, words in found])
        axis.set_ticks([], minor=True)
    axes.grid(alpha=0.2)
    ends = [
        (pairs[-1][1], name, colour)
        for (name, pairs), colour in zip(lines.items(), colours, strict=True)
    ]
    _label_ends(ends + [(level, name, "0.4") for name, level in chart.levels.items()], chart, axes)


def _label_ends(ends: list[tuple[float, str, str]], chart: Chart, axes) -> None:
    """Name each (value, name, colour) at the right edge, close to its value, without overlaps."""
    scale = Scale(*axes.get_ylim(), "y" in chart.log)
    ends = sorted(ends, key=lambda end: scale.share(end[0]))
    height = _height_inches(chart) - 0.7  # without the texts below and above
    places = spread([scale.share(value) for value, _, _ in ends], _LINE_INCHES / height, 0.0, 1.0)
    for (_, name, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            *(textwrap.fill(name, _LABEL_LETTERS), (1.0, place)),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=_darkened(colour),
            parse_math=False,
        )


def _darkened(colour: str) -> tuple[float, ...]:
    """The colour as text: a line's own would be too pale to read on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.75 * part for part in to_rgb(colour))


def _plot_heat(heat: Heat, axes) -> None:
    from matplotlib.patches import Rectangle

    for i, row in enumerate(heat.rows):
        for j, value in enumerate(row):
            colour, opacity = heat.fill(value)
            alpha = max(opacity, 0.02)  # so that the edge of an empty cell is seen
            axes.add_patch(Rectangle((j, i), 1, 1, fc=colour, ec="0.85", alpha=alpha))
            if heat.numbers:
                words, middle = format_number(value, 2), {"ha": "center", "va": "center"}
                axes.text(j + 0.5, i + 0.5, words, **middle, fontsize=7, parse_math=False)
    columns, rows = len(heat.column_names), len(heat.rows)
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect=_ROW_INCHES / _cell_inches(heat))
    place = {"loc": "left", "y": 1.0, "pad": 18}  # above the names of the columns
    axes.set_title(heat.title, fontsize=9, **place, parse_math=False)
    axes.set_xticks([j + 0.5 for j in range(columns)], heat.column_names, parse_math=False)
    axes.set_yticks([i + 0.5 for i in range(rows)], heat.row_names, parse_math=False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def _plot_bars(bars: Bars, axes) -> None:
    drawn = axes.barh(list(bars.values), list(bars.values.values()), color=bar_colours(bars.values))
    axes.bar_label(drawn, bars.labels, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(bars.title, fontsize=9, loc="left", parse_math=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _plot_diagram(diagram: Diagram, axes) -> None:
    from matplotlib.patches import Rectangle

    columns, rows = diagram.size
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    axes.set_title(diagram.title, fontsize=9, loc="left", parse_math=False)
    for box in diagram.boxes.values():
        left, top, right, bottom = box.edges
        if box.framed:
            fill = (box.colour, 0.35) if box.colour else "none"
            size = (right - left, bottom - top)
            axes.add_patch(Rectangle((left, top), *size, fc=fill, ec=box.colour or "0.5"))
        axes.text(
            *box.edges.centre, box.text, ha="center", va="center", fontsize=8, parse_math=False
        )
    for start, end in diagram.paths:
        look = {"arrowstyle": "-|>", "color": "0.4", "mutation_scale": 8}
        axes.annotate("", end, start, arrowprops=look | {"shrinkA": 0, "shrinkB": 0})


def _plot_note(note: Note, axes) -> None:
    axes.set_axis_off()
    axes.set_title(note.title, fontsize=9, loc="left", parse_math=False)
    lines, place = "\n".join(note.lines), axes.transAxes
    axes.text(0, 1, lines, va="top", family="monospace", transform=place, parse_math=False)


_PLOTTERS = {
    Chart: _plot_chart,
    Heat: _plot_heat,
    Bars: _plot_bars,
    Diagram: _plot_diagram,
    Note: _plot_note,
}
