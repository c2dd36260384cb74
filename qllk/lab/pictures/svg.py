"""Pictures of a run as SVG text: plain data in, a string out. No widget, no matplotlib.

Sizes are fixed, so that nothing on the page moves. Text takes the colour of the page around it,
the other colours read on a light and on a dark ground. A picture says its numbers in `aria-label`.
"""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from ...study.axes import LAYERS, Scale, short
from ..live.history import Point

TRAIN, VALID = "#4c84c4", "#dd7f2e"
LABEL_GAP = 13  # px between the base lines of two labels
LETTER = 6.0  # px, the mean width of a letter


class Plot(NamedTuple):
    """A frame of fixed size and its two scales."""

    width: int
    height: int
    across: Scale
    up: Scale
    left: int = 34
    right: int = 92  # room for labels
    top: int = 24
    bottom: int = 30

    def x(self, value: float) -> float:
        return self.left + self.across.share(value) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        share = self.up.share(value)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def path(self, pairs) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in pairs)


def steps_scale(steps: int) -> Scale:
    return Scale(1, max(steps, 2), log=True)


def loss_curve(
    train: list[Point],
    valid: list[tuple[int, float]],
    floors: dict[str, float],
    marks: list[tuple[int, str]],
    steps: int,
    width: int = 516,
    height: int = 300,
) -> str:
    """Bits per byte over the logarithm of the step, above the floors that it has to get under.

    train    the band is each point's lowest to highest loss, the line its mean
    marks    (step, text) where the device or the precision changed
    """
    seen = [point.mean for point in train] + [loss for _, loss in valid]
    lowest = min(filter(math.isfinite, [*floors.values(), *seen, 2.0]))
    bottom = max(0, math.floor(lowest - 0.2))
    plot = Plot(width, height, steps_scale(steps), Scale(bottom, 9.0))
    parts = [grid(plot, [(v, f"{v}") for v in range(bottom, 10)], powers_of_ten(steps), "steps")]
    parts += [line(plot, value, "5 4") for value in floors.values()]
    parts += [
        labels(plot, [(value, f"{name} {value:.2f}", None) for name, value in floors.items()])
    ]
    parts.append(upright(plot, marks))
    band = [(p.step, p.high) for p in train] + [(p.step, p.low) for p in reversed(train)]
    parts.append(f'<polygon points="{plot.path(band)}" fill="{TRAIN}" opacity="0.25"/>')
    parts.append(curve(plot, [(p.step, p.mean) for p in train], TRAIN))
    parts.append(curve(plot, valid, VALID))
    parts += [dot(plot, *pair, VALID) for pair in valid]
    parts += [dot(plot, point.step, point.mean, TRAIN) for point in train[-1:]]
    parts.append(legend(plot, [("training", TRAIN), ("held out", VALID)]))
    parts.append(caption(plot, "bits per byte"))
    return picture(plot, loss_digest(train, valid, floors, marks), parts)


def loss_digest(train, valid, floors, marks) -> str:
    """The same in words."""
    if not train:
        return "Loss in bits per byte: no step taken yet."
    said = f"Loss after {train[-1].step} steps: {train[-1].mean:.2f} bits per byte in training"
    said += f", {valid[-1][1]:.2f} held out" if valid else ""
    known = ", ".join(f"{name} {value:.2f}" for name, value in floors.items())
    moved = "; ".join(f"{text} from step {step}" for step, text in marks)
    return f"{said}. Floors: {known or 'none'}." + (f" {moved}." if moved else "")


def state_curves(
    states: dict[str, list[Point]], steps: int, empty="", width: int = 320, height: int = 300
) -> str:
    """How large each layer's state is, both axes logarithmic; or why the picture is `empty`."""
    lines = {name: [(p.step, p.mean) for p in points] for name, points in states.items()}
    lines = {
        name: kept
        for name, pairs in lines.items()
        if (kept := [(step, rms) for step, rms in pairs if 0 < rms < math.inf])
    }
    values = [rms for pairs in lines.values() for _, rms in pairs] or [0.1, 10.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)
    up = Scale(10.0**low, 10.0**high, log=True)
    plot = Plot(width, height, steps_scale(steps), up, left=40, right=130)
    rows = [(10.0**e, short(10.0**e)) for e in range(low, high + 1)]
    parts = [grid(plot, rows, powers_of_ten(steps), "steps")]
    ends = []
    for i, (name, pairs) in enumerate(lines.items()):
        colour = LAYERS[i % len(LAYERS)]
        parts += [curve(plot, pairs, colour), dot(plot, *pairs[-1], colour)]
        ends.append((pairs[-1][1], f"{name} {short(pairs[-1][1])}", colour))
    parts.append(labels(plot, ends))
    parts.append(caption(plot, "state rms per layer"))
    if not ends:
        parts.append(text(plot.left + 8, plot.top + 20, empty))
    said = ", ".join(words for _, words, _ in ends) or empty
    return picture(plot, f"State rms per layer: {said}.", parts)


# ---------------------------------------------------------------- parts


def picture(plot: Plot, digest: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{plot.width}" height="{plot.height}" '
        f'viewBox="0 0 {plot.width} {plot.height}" role="img" aria-label="{escape(digest)}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor">'
        f"{''.join(parts)}</svg>"
    )


def text(x, y, words, *, anchor="start", colour=None, opacity=0.75) -> str:
    fill = f' fill="{colour}"' if colour else f' opacity="{opacity}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escape(words)}</text>'


def grid(plot: Plot, rows, columns, name: str) -> str:
    """Faint lines at the (value, text) of `rows`, numbers under those of `columns`, their name."""
    parts = []
    for value, words in rows:
        parts.append(line(plot, value))
        parts.append(text(plot.left - 6, plot.y(value) + 4, words, anchor="end"))
    base = plot.height - plot.bottom
    for value, words in columns:
        x = plot.x(value)
        parts.append(stroke(x, base, x, base + 4, 0.5))
        parts.append(text(x, base + 16, words, anchor="middle"))
    parts.append(text(plot.width - plot.right + 8, base + 16, name))
    return "".join(parts)


def powers_of_ten(most: int) -> list[tuple[int, str]]:
    """1, 10, 100 … up to `most`, each with its text."""
    return [(10**e, f"{10**e:,}") for e in range(int(math.log10(max(most, 1)) + 1e-9) + 1)]


def stroke(x1, y1, x2, y2, opacity, dashes=None) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="currentColor" opacity="{opacity}"{dashed}/>'
    )


def line(plot: Plot, value: float, dashes: str | None = None) -> str:
    y, opacity = plot.y(value), 0.6 if dashes else 0.12
    return stroke(plot.left, y, plot.width - plot.right, y, opacity, dashes)


def upright(plot: Plot, marks: list[tuple[int, str]]) -> str:
    """A line where each mark begins; its text above it, in the first row that has room, if any."""
    parts, free = [], [0.0, 0.0]  # where each row's last text ends
    under = plot.top + LABEL_GAP * len(free) + 4
    for step, words in marks:
        x, size = plot.x(step), LETTER * len(words)
        parts.append(stroke(x, under, x, plot.height - plot.bottom, 0.5, "2 3"))
        start = min(x, plot.width - plot.right - size)
        if rows := [row for row, end in enumerate(free) if end < start]:
            free[rows[0]] = start + size + 6
            parts.append(text(start, plot.top + 11 + LABEL_GAP * rows[0], words))
    return "".join(parts)


def curve(plot: Plot, pairs, colour: str) -> str:
    return (
        f'<polyline points="{plot.path(pairs)}" fill="none" stroke="{colour}" '
        f'stroke-width="1.8" stroke-linejoin="round"/>'
    )


def dot(plot: Plot, step: int, value: float, colour: str) -> str:
    return f'<circle cx="{plot.x(step):.1f}" cy="{plot.y(value):.1f}" r="2.2" fill="{colour}"/>'


def labels(plot: Plot, items) -> str:
    """Texts at the right edge, each near its (value, text, colour), none over another."""
    items = sorted(items, key=lambda item: plot.y(item[0]))
    wanted = [plot.y(value) + 4 for value, _, _ in items]
    places = spread(wanted, LABEL_GAP, plot.height - plot.bottom + 4)
    x = plot.width - plot.right + 6
    return "".join(
        text(x, y, words, colour=colour)
        for y, (_, words, colour) in zip(places, items, strict=True)
    )


def spread(wanted: list[float], gap: float, last: float) -> list[float]:
    """Rising places at least `gap` apart and at most `last`, each as near as that lets it be."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], last - gap * (len(places) - 1 - i))
    return places


def legend(plot: Plot, entries) -> str:
    """Names with their colour, right-aligned above the frame."""
    parts, x = [], plot.width - plot.right
    for words, colour in reversed(entries):
        parts.append(text(x, plot.top - 9, words, anchor="end"))
        x -= LETTER * len(words) + 4
        parts.append(
            f'<rect x="{x - 10:.1f}" y="{plot.top - 14}" width="10" height="3" fill="{colour}"/>'
        )
        x -= 22
    return "".join(parts)


def caption(plot: Plot, words: str) -> str:
    return text(0, plot.top - 9, words, opacity=1)
