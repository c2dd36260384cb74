"""Figures as SVG text, for widgets. Drawn of the parts in `svg.py`: fixed sizes, escaped words."""

from __future__ import annotations

import math
from functools import singledispatch
from html import escape

from ...study.axes import LAYERS, NEGATIVE, POSITIVE, Scale, short, ticks
from ...study.figures import Bars, Chart, Heat, Note, Page, rows_of
from .svg import (
    LETTER,
    Plot,
    caption,
    curve,
    dot,
    grid,
    labels,
    picture,
    text,
)

WIDTH, HEIGHT = 560, 300
CELL, WIDE = 24, 46  # a cell of a table, and one that holds a number


def page_html(page: Page) -> str:
    """All figures of a page, rows from top to bottom."""
    return "".join(
        f'<div class="q-figures">{"".join(map(drawn, row))}</div>' for row in rows_of(page)
    )


@singledispatch
def drawn(figure) -> str:
    """One figure as SVG."""
    raise TypeError(f"a figure is a Chart, Heat, Bars or Note, got {figure!r}")


@drawn.register
def _(chart: Chart) -> str:
    lines, levels = chart.drawable, chart.levels
    across = scale([a for pairs in lines.values() for a, _ in pairs], "x" in chart.log)
    heights = [b for pairs in lines.values() for _, b in pairs] + list(levels.values())
    up = scale(heights, "y" in chart.log)
    room = int(LETTER * max([len(name) for name in [*lines, *levels]], default=8)) + 60
    plot = Plot(WIDTH, HEIGHT, across, up, left=58, right=room, bottom=46)
    parts, ends = [grid(plot, ticks(up), ticks(across), "")], []
    for number, (name, pairs) in enumerate(lines.items()):
        colour = LAYERS[number % len(LAYERS)]
        parts += [curve(plot, pairs, colour), *(dot(plot, a, b, colour) for a, b in pairs)]
        ends.append((pairs[-1][1], f"{name} {short(pairs[-1][1])}", colour))
    for name, level in levels.items():
        parts.append(curve(plot, [(across.low, level), (across.high, level)], "currentColor"))
        ends.append((level, f"{name} {short(level)}", None))
    middle = (plot.left + WIDTH - plot.right) / 2
    parts.append(text(middle, HEIGHT - 8, chart.x, anchor="middle"))
    parts += [labels(plot, ends), caption(plot, chart.y)]
    return picture(plot, chart.digest, parts)


def scale(values: list[float], log: bool) -> Scale:
    """A scale with a little room around the values; from zero if it is not logarithmic."""
    values = values or [1.0, 10.0]
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.2, max(high, low * 1.1) * 1.2, log=True)
    low = min(low, 0.0)
    return Scale(low, low + 1.05 * ((high - low) or 1.0))


@drawn.register
def _(heat: Heat) -> str:
    left, top = 10 + int(LETTER * max(map(len, heat.row_names), default=0)), 44
    wide = WIDE if heat.numbers else CELL
    width = left + wide * len(heat.column_names) + 8
    width = max(width, int(LETTER * 1.1 * len(heat.title)))
    plot = Plot(width, top + CELL * len(heat.rows) + 8, Scale(0, 1), Scale(0, 1))
    parts = [text(0, 14, heat.title, opacity=1)]
    for j, name in enumerate(heat.column_names):
        parts.append(text(left + wide * (j + 0.5), top - 6, name, anchor="middle"))
    for i, (name, row) in enumerate(zip(heat.row_names, heat.rows, strict=True)):
        y = top + CELL * i
        parts.append(text(left - 6, y + CELL / 2 + 4, name, anchor="end"))
        for j, value in enumerate(row):
            parts.append(cell(left + wide * j, y, wide, value, heat.full))
            if heat.numbers:
                said = short(value, 2)
                parts.append(text(left + wide * (j + 0.5), y + CELL / 2 + 4, said, anchor="middle"))
    return picture(plot, heat.digest, parts)


def cell(x, y, width, value, full) -> str:
    colour = POSITIVE if value >= 0 else NEGATIVE
    share = min(1.0, abs(value) / full) if math.isfinite(value) else 1.0
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width - 1}" height="{CELL - 1}" rx="2" '
        f'fill="{colour}" fill-opacity="{share:.2f}" stroke="currentColor" stroke-opacity="0.15"/>'
    )


@drawn.register
def _(bars: Bars) -> str:
    left = 14 + int(1.2 * LETTER * max(map(len, bars.values), default=0))
    said = [f"{short(value)} {bars.unit}" for value in bars.values.values()]
    right = 14 + int(LETTER * max(map(len, said), default=0))
    most = max(bars.values.values(), default=1.0) or 1.0
    plot = Plot(WIDTH, 34 + 26 * len(bars.values), Scale(0, 1), Scale(0, 1))
    parts = [text(0, 14, bars.title, opacity=1)]
    for i, (name, value) in enumerate(bars.values.items()):
        y, size = 28 + 26 * i, max(1.0, (WIDTH - left - right) * max(value, 0.0) / most)
        colour = LAYERS[i % len(LAYERS)]
        parts.append(text(left - 8, y + 13, name, anchor="end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{size:.1f}" height="18" rx="2" fill="{colour}"/>'
        )
        parts.append(text(left + size + 6, y + 13, said[i]))
    return picture(plot, bars.digest, parts)


@drawn.register
def _(note: Note) -> str:
    width = max(WIDTH, int(LETTER * 1.2 * max(map(len, note.lines), default=0)))
    plot = Plot(width, 26 + 18 * len(note.lines), Scale(0, 1), Scale(0, 1))
    parts = [text(0, 14, note.title, opacity=1)]
    parts += [
        f'<text x="0" y="{34 + 18 * i}" xml:space="preserve">{escape(line)}</text>'
        for i, line in enumerate(note.lines)
    ]
    return picture(plot, note.digest, parts)
