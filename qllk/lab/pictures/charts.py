"""Figures as SVG text, for widgets. All sizes are fixed and all words escaped."""

from __future__ import annotations

from ...study.axes import Scale, bar_colours, format_number, series_colours
from ...study.figures import Bars, Chart, Diagram, Figure, Heat, Note, Page, rows_of
from .svg import LINE_HEIGHT, Frame, arrow, document, show_text, text, text_width

_WIDTH, _HEIGHT = 560, 300
_CELL, _NUMBER_CELL = 24, 46  # px, the width of a table's cell without and with a number
_BAR_ROW, _NOTE_ROW = 26, 18  # px
_MOST_DOTS = 40  # of a curve


def page_html(page: Page) -> str:
    """All figures of a page, row after row.

    Raises   TypeError when the page holds something that is not a figure
    """
    return "".join(
        f'<div class="q-figures">{"".join(map(draw_svg, row))}</div>' for row in rows_of(page)
    )


def draw_svg(figure: Figure) -> str:
    """One figure as an SVG element."""
    return _PAINTERS[type(figure)](figure)


def _draw_chart(chart: Chart) -> str:
    lines, levels = chart.drawable, chart.levels
    xs = [x for pairs in lines.values() for x, _ in pairs]
    ys = [y for pairs in lines.values() for _, y in pairs] + list(levels.values())
    x_scale = _fit_scale(xs, "x" in chart.log)._replace(whole=chart.counts_in_x)
    y_scale = _fit_scale(ys, "y" in chart.log)
    right = text_width([*lines, *levels] or [" " * 8]) + 60
    frame = Frame(_WIDTH, _HEIGHT, x_scale, y_scale, left=58, right=right, bottom=46)
    parts, ends = [frame.grid(), *map(frame.level, levels.values())], []
    for (name, pairs), colour in zip(lines.items(), series_colours(lines), strict=True):
        dots = pairs if len(pairs) <= _MOST_DOTS else pairs[-1:]
        parts += [frame.curve(pairs, colour), *(frame.dot(x, y, colour) for x, y in dots)]
        ends.append((pairs[-1][1], f"{name} {format_number(pairs[-1][1])}", colour))
    ends += [(level, f"{name} {format_number(level)}", None) for name, level in levels.items()]
    middle = (frame.left + frame.x_end) / 2
    parts.append(text(middle, _HEIGHT - 8, chart.x, anchor="middle"))
    parts += [frame.labels(ends), frame.caption(chart.y)]
    return document(_WIDTH, _HEIGHT, chart.digest, parts)


def _fit_scale(values: list[float], log: bool) -> Scale:
    """A scale with a little room around the values; a linear one includes zero."""
    values = values or [1.0, 10.0]
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.2, max(high, low * 1.1) * 1.2, log=True)
    low = min(low, 0.0)
    return Scale(low, low + 1.05 * ((high - low) or 1.0))


def _draw_heat(heat: Heat) -> str:
    left, top = 10 + text_width(heat.row_names), 44
    cell = _NUMBER_CELL if heat.numbers else _CELL
    width = max(left + cell * len(heat.column_names) + 8, text_width([heat.title], 1.1))
    parts = [_title(heat)]
    for j, name in enumerate(heat.column_names):
        parts.append(text(left + cell * (j + 0.5), top - 6, name, anchor="middle"))
    for i, (name, row) in enumerate(zip(heat.row_names, heat.rows, strict=True)):
        y = top + _CELL * i
        parts.append(text(left - 6, y + _CELL / 2 + 4, name, anchor="end"))
        for j, value in enumerate(row):
            x, (colour, opacity) = left + cell * j, heat.fill(value)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" height="{_CELL - 1}" rx="2" '
                f'fill="{colour}" fill-opacity="{opacity:.2f}" stroke="currentColor" '
                f'stroke-opacity="0.15"/>'
            )
            if heat.numbers:
                words = format_number(value, 2)
                parts.append(text(x + cell / 2, y + _CELL / 2 + 4, words, anchor="middle"))
    return document(width, top + _CELL * len(heat.rows) + 8, heat.digest, parts)


def _draw_bars(bars: Bars) -> str:
    left, right = 14 + text_width(bars.values, 1.2), 14 + text_width(bars.labels)
    longest = max(bars.values.values(), default=1.0) or 1.0
    parts, colours = [_title(bars)], bar_colours(bars.values)
    for i, (name, value) in enumerate(bars.values.items()):
        y, size = 28 + _BAR_ROW * i, (_WIDTH - left - right) * max(value, 0.0) / longest
        size = max(1.0, size)  # so that zero is seen
        parts.append(text(left - 8, y + 13, name, anchor="end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{size:.1f}" height="18" rx="2" fill="{colours[i]}"/>'
        )
        parts.append(text(left + size + 6, y + 13, bars.labels[i]))
    return document(_WIDTH, 34 + _BAR_ROW * len(bars.values), bars.digest, parts)


def _draw_diagram(diagram: Diagram) -> str:
    columns, rows = diagram.size
    wide, high = text_width(["x"], diagram.letters) + 8, LINE_HEIGHT * diagram.lines_of_text + 26
    top, parts = 24, [_title(diagram)]

    def place(column, row):
        return wide * column, top + high * row

    for box in diagram.boxes.values():
        (left, upper), (right, lower) = place(*box.edges[:2]), place(*box.edges[2:])
        if box.framed:
            parts.append(
                f'<rect x="{left:.1f}" y="{upper:.1f}" width="{right - left:.1f}" '
                f'height="{lower - upper:.1f}" rx="3" '
                f'fill="{box.colour or "none"}" fill-opacity="0.35" '
                f'stroke="{box.colour or "currentColor"}" stroke-opacity="0.7"/>'
            )
        (x, y), lines = place(*box.edges.centre), box.text.split("\n")
        for i, line in enumerate(lines):
            below = LINE_HEIGHT * (i - (len(lines) - 1) / 2)
            parts.append(text(x, y + 4 + below, line, anchor="middle", opacity=1))
    parts += [arrow(*place(*start), *place(*end)) for start, end in diagram.paths]
    width = max(int(wide * columns) + 8, text_width([diagram.title], 1.1))
    return document(width, int(top + high * rows), diagram.digest, parts)


def _draw_note(note: Note) -> str:
    parts = [_title(note)]
    parts += [
        f'<text x="0" y="{34 + _NOTE_ROW * i}" xml:space="preserve">{show_text(line)}</text>'
        for i, line in enumerate(note.lines)
    ]
    width = max(_WIDTH, text_width(note.lines, 1.2))
    return document(width, 26 + _NOTE_ROW * len(note.lines), note.digest, parts)


def _title(figure: Heat | Bars | Diagram | Note) -> str:
    return text(0, 14, figure.title, opacity=1)


_PAINTERS = {
    Chart: _draw_chart,
    Heat: _draw_heat,
    Bars: _draw_bars,
    Diagram: _draw_diagram,
    Note: _draw_note,
}
