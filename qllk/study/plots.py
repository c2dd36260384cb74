"""Figures as PNG by matplotlib, to be stored in a notebook where everybody sees them.

`picture(figure)` as the last line of a cell shows it. Its text form is the digest: a test that
cannot look at pictures compares that.
"""

from __future__ import annotations

import io
import math
from functools import singledispatch
from pathlib import Path

from ..files import write_atomically
from .axes import LAYERS, NEGATIVE, POSITIVE, Scale, short, ticks
from .figures import Bars, Chart, Heat, Note, Page, digest, rows_of

INCHES = 5.6  # the width of one figure
DASHES = ("--", ":", "-.")  # of levels, in turn


class Picture:
    """A page drawn when a notebook shows it."""

    def __init__(self, page: Page):
        self.page = page

    def __repr__(self):
        return digest(self.page)

    def _repr_png_(self):
        from matplotlib import rc_context

        with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            canvas = io.BytesIO()
            self._figure().savefig(canvas, format="png", dpi=90, metadata={"Software": None})
        return canvas.getvalue()

    def _figure(self):
        from matplotlib.figure import Figure

        rows = rows_of(self.page)
        heights = [max(height(figure) for figure in row) for row in rows]
        width = max(sum(breadth(figure) for figure in row) for row in rows)
        whole = Figure(figsize=(width, sum(heights)))
        whole.set_layout_engine("constrained", w_pad=0.1)
        parts = whole.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=True):
            ratios = [breadth(figure) for figure in row]
            places = part.subplots(1, len(row), width_ratios=ratios, squeeze=False)[0]
            for place, figure in zip(places, row, strict=True):
                plot(figure, place)
        return whole


def save_picture(page: Page, path: Path) -> None:
    """Write a figure or a page of them as a PNG."""
    write_atomically(path, Picture(page)._repr_png_())


def picture(page: Page) -> Picture:
    """A figure or a page of them, shown by the cell that ends with it."""
    return Picture(page)


def height(figure) -> float:
    """In inches."""
    match figure:
        case Heat():
            return 0.8 + 0.26 * len(figure.rows)
        case Bars():
            return 0.6 + 0.26 * len(figure.values)
        case Note():
            return 0.5 + 0.2 * len(figure.lines)
    return 2.9


def breadth(figure) -> float:
    """In inches."""
    if isinstance(figure, Heat):
        return max(2.8, 0.9 + 0.26 * len(figure.column_names))
    return INCHES


@singledispatch
def plot(figure, axes) -> None:
    """Draw one figure into matplotlib axes."""
    raise TypeError(f"a figure is a Chart, Heat, Bars or Note, got {figure!r}")


@plot.register
def _(chart: Chart, axes) -> None:
    for number, (name, pairs) in enumerate(chart.drawable.items()):
        axes.plot(*zip(*pairs, strict=True), ".-", color=LAYERS[number % len(LAYERS)], label=name)
    for number, (name, level) in enumerate(chart.levels.items()):
        dashes = DASHES[number % len(DASHES)]
        axes.axhline(level, color="0.5", linestyle=dashes, linewidth=1, label=name)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.axis_name in chart.log:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            found = ticks(Scale(*axis.get_view_interval(), log=True))
            axis.set_ticks([value for value, _ in found], [words for _, words in found])
            axis.set_ticks([], minor=True)
    if "y" not in chart.log:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.2)
    if chart.drawable:
        axes.legend(frameon=False)


@plot.register
def _(heat: Heat, axes) -> None:
    from matplotlib.patches import Rectangle

    for i, row in enumerate(heat.rows):
        for j, value in enumerate(row):
            share = min(1.0, abs(value) / heat.full) if math.isfinite(value) else 1.0
            colour = POSITIVE if value >= 0 else NEGATIVE
            axes.add_patch(Rectangle((j, i), 1, 1, fc=colour, ec="0.85", alpha=max(share, 0.02)))
            if heat.numbers:
                said = short(value, 2)
                axes.text(
                    j + 0.5, i + 0.5, said, ha="center", va="center", fontsize=7, parse_math=False
                )
    columns, rows = len(heat.column_names), len(heat.rows)
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    axes.set_title(heat.title, fontsize=9, parse_math=False)
    axes.set_xticks([j + 0.5 for j in range(columns)], heat.column_names, parse_math=False)
    axes.set_yticks([i + 0.5 for i in range(rows)], heat.row_names, parse_math=False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


@plot.register
def _(bars: Bars, axes) -> None:
    colours = [LAYERS[i % len(LAYERS)] for i in range(len(bars.values))]
    drawn = axes.barh(list(bars.values), list(bars.values.values()), color=colours)
    axes.bar_label(drawn, [f"{short(v)} {bars.unit}" for v in bars.values.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(bars.title, fontsize=9, loc="left", parse_math=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


@plot.register
def _(note: Note, axes) -> None:
    axes.set_axis_off()
    axes.set_title(note.title, fontsize=9, loc="left", parse_math=False)
    axes.text(
        0,
        1,
        "\n".join(note.lines),
        va="top",
        family="monospace",
        transform=axes.transAxes,
        parse_math=False,
    )
