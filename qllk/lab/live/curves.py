"""The two pictures of a live run as SVG text: its loss, and what its state contains."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...study.axes import BLUE, GREY, ORANGE, Scale, format_number, series_colours
from ..pictures.svg import LINE_HEIGHT, Frame, document, stroke, text, text_width
from .history import Point

_TRAINING, _HELD_OUT, _EARLIER = BLUE, ORANGE, GREY
_LEGEND = {"training": _TRAINING, "held out": _HELD_OUT}
_LOSS_WIDTH, _STATES_WIDTH, _HEIGHT = 516, 320, 300
_HIGHEST_LOSS = 9.0  # bits per byte; a blind guess costs 8
_MARK_ROWS = 2  # for the texts of marks, above the curves
_MOST_BARS = 10  # with more, the curves above them would have no room
_BAR_PITCH = 14  # px between two bars


def loss_curve(
    train: list[Point],
    valid: list[tuple[int, float]],
    baselines: dict[str, float],
    marks: list[tuple[int, str]],
    steps: int,
    earlier: Sequence[list[tuple[int, float]]] = (),
) -> str:
    """Bits per byte against the step (log scale), with the baselines to beat.

    train    drawn as a line, the means, inside a band from the lowest to the highest loss
    marks    (step, text) wherever the device or the precision changed
    earlier  held-out curves of runs before this one, drawn behind it
    """
    losses = [point.mean for point in train] + [loss for _, loss in valid]
    losses += [loss for curve in earlier for _, loss in curve]
    steps = max([steps, *(curve[-1][0] for curve in earlier if curve)])
    lowest = min(filter(math.isfinite, [*baselines.values(), *losses, 2.0]))
    y_scale = Scale(max(0, math.floor(lowest - 0.2)), _HIGHEST_LOSS)
    frame = Frame(_LOSS_WIDTH, _HEIGHT, _step_scale(steps), y_scale)
    means = [(p.step, p.mean) for p in train]
    band = [(p.step, p.high) for p in train] + [(p.step, p.low) for p in reversed(train)]
    parts = [
        frame.grid("steps", most_rows=10),
        *map(frame.level, baselines.values()),
        frame.labels([(bits, f"{name} {bits:.2f}", None) for name, bits in baselines.items()]),
        _draw_marks(frame, marks),
        *(frame.curve(curve, _EARLIER) for curve in earlier),
        f'<polygon points="{frame.points(band)}" fill="{_TRAINING}" opacity="0.25"/>',
        frame.curve(means, _TRAINING),
        frame.curve(valid, _HELD_OUT),
        *(frame.dot(step, loss, _HELD_OUT) for step, loss in valid),
        *(frame.dot(step, loss, _TRAINING) for step, loss in means[-1:]),
        _draw_legend(frame, _LEGEND | ({"earlier": _EARLIER} if earlier else {})),
        frame.caption("bits per byte"),
    ]
    return document(_LOSS_WIDTH, _HEIGHT, _loss_digest(train, valid, baselines, marks), parts)


def state_curves(
    states: dict[str, list[Point]],
    steps: int,
    rows_in_use: dict[str, float] | None = None,
    empty: str = "",
) -> str:
    """The root mean square of each layer's state against the step, both on log scales.

    Below, a bar for each context of a recall, whose numbers are ids and counts and have no size.

    rows_in_use    the share of its rows, by context
    empty          shown instead of curves as long as there are none
    """
    bars = dict(list((rows_in_use or {}).items())[:_MOST_BARS])
    height = _HEIGHT - (_BAR_PITCH * (len(bars) + 1) + 12 if bars else 0)
    points = {
        name: [(p.step, p.mean) for p in history if 0 < p.mean < math.inf]
        for name, history in states.items()
    }
    lines = {name: pairs for name, pairs in points.items() if pairs}
    values = [rms for pairs in lines.values() for _, rms in pairs] or [0.1, 10.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    y_scale = Scale(10.0**low, 10.0 ** max(high, low + 1), log=True)
    ends = [
        (pairs[-1][1], f"{name} {format_number(pairs[-1][1])}", colour)
        for (name, pairs), colour in zip(lines.items(), series_colours(lines), strict=True)
    ]
    right = max(130, text_width(lines) + 46)  # numbers change, so only the names may decide
    frame = Frame(_STATES_WIDTH, height, _step_scale(steps), y_scale, left=40, right=right)
    parts = [frame.grid("steps"), frame.labels(ends), frame.caption("state rms per layer")]
    for pairs, (_, _, colour) in zip(lines.values(), ends, strict=True):
        parts += [frame.curve(pairs, colour), frame.dot(*pairs[-1], colour)]
    if not ends:
        parts.append(text(frame.left + 8, frame.top + 20, empty))
    words = ", ".join(words for _, words, _ in ends) or empty
    digest = f"State rms per layer: {words}."
    if bars:
        parts.append(_draw_bars(bars, height))
        words = ", ".join(f"{name} {_percent(share)}" for name, share in bars.items())
        digest += f" Rows in use after a window: {words}."
    return document(_STATES_WIDTH, _HEIGHT, digest, parts)


def _draw_bars(shares: dict[str, float], top: float) -> str:
    """A caption, then a bar for each share, with its name and its number."""
    left, longest = 10 + text_width(shares), max(shares.values()) or 1.0
    room = _STATES_WIDTH - left - text_width(["99.9 %"], 1.2) - 8
    parts = [text(0, top + 14, "rows in use after a window", opacity=1)]
    for i, (name, share) in enumerate(shares.items()):
        y, size = top + 14 + _BAR_PITCH * (i + 1), max(1.0, room * share / longest)
        parts += [
            text(left - 6, y, name, anchor="end"),
            f'<rect x="{left}" y="{y - 9:.1f}" width="{size:.1f}" height="10" fill="{BLUE}"/>',
            text(left + size + 6, y, _percent(share)),
        ]
    return "".join(parts)


def _percent(share: float) -> str:
    return f"{format_number(100 * share, 2)} %"


def _step_scale(steps: int) -> Scale:
    return Scale(1, max(steps, 2), log=True)


def _draw_marks(frame: Frame, marks: list[tuple[int, str]]) -> str:
    """A vertical line at each mark, and its text above in the first row with room, if any."""
    parts, row_ends = [], [0.0] * _MARK_ROWS  # where the last text of each row ends
    top = frame.top + LINE_HEIGHT * _MARK_ROWS + 4
    for step, words in marks:
        x, width = frame.x(step), text_width([words])
        parts.append(stroke(x, top, x, frame.y_end, 0.5, "2 3"))
        start = min(x, frame.x_end - width)
        if free := [row for row, end in enumerate(row_ends) if end < start]:
            row_ends[free[0]] = start + width + 6
            parts.append(text(start, frame.top + 11 + LINE_HEIGHT * free[0], words))
    return "".join(parts)


def _draw_legend(frame: Frame, colours: dict[str, str]) -> str:
    """Names next to their colours, right-aligned above the frame."""
    parts, x = [], frame.x_end
    for words, colour in reversed(colours.items()):
        parts.append(text(x, frame.top - 9, words, anchor="end"))
        x -= text_width([words]) + 4
        parts.append(
            f'<rect x="{x - 10:.1f}" y="{frame.top - 14}" width="10" height="3" fill="{colour}"/>'
        )
        x -= 22
    return "".join(parts)


def _loss_digest(train, valid, baselines, marks) -> str:
    if not train:
        return "Loss in bits per byte: no step taken yet."
    loss = f"Loss after {train[-1].step} steps: {train[-1].mean:.2f} bits per byte in training"
    loss += f", {valid[-1][1]:.2f} held out" if valid else ""
    known = ", ".join(f"{name} {bits:.2f}" for name, bits in baselines.items())
    changes = "; ".join(f"{words} from step {step}" for step, words in marks)
    return f"{loss}. Baselines: {known or 'none'}." + (f" {changes}." if changes else "")
