"""Figures drawn by matplotlib, as PNGs that a notebook stores, so that everybody sees them.

`picture(figure)` as the last line of a cell shows it. Its text form is the digest, which a test
that cannot look at pictures compares.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

from ..files import write_atomically
from .axes import Scale, format_number, series_colour, ticks
from .figures import Bars, Chart, Figure, Heat, Note, Page, digest, rows_of

_WIDTH_INCHES = 5.6  # of one figure
_LABEL_LETTERS = 32  # in a line of a label
_LABEL_HEIGHT = 0.05  # of a level's label, as a share of the axes
_ROW_INCHES = 0.26  # of a table or of bars
_DASHES = ("--", ":", "-.")  # of levels, in turn
_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


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
        whole.set_layout_engine("constrained", w_pad=0.1)
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
        case Note():
            return 0.5 + 0.2 * len(figure.lines)
    return 2.9


def _width_inches(figure: Figure) -> float:
    if isinstance(figure, Heat):
        return max(2.8, 0.9 + _ROW_INCHES * len(figure.column_names))
    return _WIDTH_INCHES


def _plot_chart(chart: Chart, axes) -> None:
    for i, (name, pairs) in enumerate(chart.drawable.items()):
        axes.plot(*zip(*pairs, strict=True), ".-", color=series_colour(i), label=name)
    for i, level in enumerate(chart.levels.values()):
        dashes = _DASHES[i % len(_DASHES)]
        axes.axhline(level, color="0.5", linestyle=dashes, linewidth=1)
    axes.set(xlabel=chart.x, ylabel=textwrap.fill(chart.y, _LABEL_LETTERS))
    for axis in (axes.xaxis, axes.yaxis):
        if axis.axis_name in chart.log:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            found = ticks(Scale(*axis.get_view_interval(), log=True))
            axis.set_ticks([value for value, _ in found], [words for _, words in found])
            axis.set_ticks([], minor=True)
    if "y" not in chart.log:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _label_levels(chart.levels, axes)
    axes.grid(alpha=0.2)
    if chart.drawable:
        axes.legend(frameon=False)


def _label_levels(levels: dict[str, float], axes) -> None:
    """Write the name of each level at its right end, and those of neighbours as one label."""
    to_height = axes.transData + axes.transAxes.inverted()
    labels: list[tuple[float, list[str]]] = []  # from the bottom, each with its height
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        height = to_height.transform((axes.get_xlim()[1], level))[1]
        if labels and height - labels[-1][0] < _LABEL_HEIGHT:
            labels[-1][1].append(name)
        else:
            labels.append((height, [name]))
    for height, names in labels:
        axes.annotate(
            *(", ".join(names), (1.0, height)),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color="0.4",
        )


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
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.set_title(heat.title, fontsize=9, parse_math=False)
    axes.set_xticks([j + 0.5 for j in range(columns)], heat.column_names, parse_math=False)
    axes.set_yticks([i + 0.5 for i in range(rows)], heat.row_names, parse_math=False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def _plot_bars(bars: Bars, axes) -> None:
    colours = [series_colour(i) for i in range(len(bars.values))]
    drawn = axes.barh(list(bars.values), list(bars.values.values()), color=colours)
    axes.bar_label(drawn, bars.labels, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(bars.title, fontsize=9, loc="left", parse_math=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _plot_note(note: Note, axes) -> None:
    axes.set_axis_off()
    axes.set_title(note.title, fontsize=9, loc="left", parse_math=False)
    lines, place = "\n".join(note.lines), axes.transAxes
    axes.text(0, 1, lines, va="top", family="monospace", transform=place, parse_math=False)


_PLOTTERS = {Chart: _plot_chart, Heat: _plot_heat, Bars: _plot_bars, Note: _plot_note}
