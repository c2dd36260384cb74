"""SVG primitives: a document, text, and a frame with two scales. Data in, text out.

Sizes are fixed, so that nothing on the page moves. Text inherits the colour of the page around
it. A document repeats its numbers in words, in `aria-label`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from ...study.axes import Scale, spread, ticks

LETTER_WIDTH = 6.0  # px, on average
LINE_HEIGHT = 13  # px between two baselines of text

_Pairs = Iterable[tuple[float, float]]


def show_text(text: str) -> str:
    """Text for a page: escaped, tabs as spaces, a dot for every other unprintable character."""
    text = text.replace("\t", "    ").replace("\ufffd", "·")
    return escape("".join(c if c.isprintable() or c == "\n" else "·" for c in text))


def document(width: int, height: int, digest: str, parts: list[str]) -> str:
    """An SVG element of fixed size around its parts; `digest` describes it to a screen reader."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{show_text(digest)}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor">'
        f"{''.join(parts)}</svg>"
    )


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    colour: str | None = None,
    opacity: float = 0.75,
) -> str:
    """One line of escaped text; `opacity` applies where no colour is given."""
    fill = f' fill="{colour}"' if colour else f' opacity="{opacity}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{show_text(words)}</text>'


def text_width(texts: Iterable[str], letters: float = 1.0) -> int:
    """The estimated width of the longest text in px; `letters` above 1 allows for wide ones."""
    return int(letters * LETTER_WIDTH * max(map(len, texts), default=0))


class Frame(NamedTuple):
    """A plotting area of fixed size, in px, and its two scales."""

    width: int
    height: int
    x_scale: Scale
    y_scale: Scale
    left: int = 34
    right: int = 92  # room for labels
    top: int = 24
    bottom: int = 30

    @property
    def x_end(self) -> int:
        return self.width - self.right

    @property
    def y_end(self) -> int:
        return self.height - self.bottom

    def x(self, value: float) -> float:
        return self.left + self.x_scale.share(value) * (self.x_end - self.left)

    def y(self, value: float) -> float:
        return self.y_end - self.y_scale.share(value) * (self.y_end - self.top)

    def points(self, pairs: _Pairs) -> str:
        """The pairs in px, as a polyline or a polygon takes them."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in pairs)

    def grid(self, x_name: str = "", most_rows: int = 6) -> str:
        """Faint horizontal lines and ticks below the frame, at round values, with their texts."""
        parts = []
        for value, words in ticks(self.y_scale, most_rows):
            parts.append(self._horizontal(value, 0.12))
            parts.append(text(self.left - 6, self.y(value) + 4, words, anchor="end"))
        for value, words in ticks(self.x_scale):
            x = self.x(value)
            parts.append(stroke(x, self.y_end, x, self.y_end + 4, 0.5))
            parts.append(text(x, self.y_end + 16, words, anchor="middle"))
        parts.append(text(self.x_end + 8, self.y_end + 16, x_name))
        return "".join(parts)

    def level(self, value: float) -> str:
        """A dashed line across the frame: a constant to compare curves with."""
        return self._horizontal(value, 0.6, "5 4")

    def _horizontal(self, value, opacity, dashes=""):
        y = self.y(value)
        return stroke(self.left, y, self.x_end, y, opacity, dashes)

    def curve(self, pairs: _Pairs, colour: str) -> str:
        return (
            f'<polyline points="{self.points(pairs)}" fill="none" stroke="{colour}" '
            f'stroke-width="1.8" stroke-linejoin="round"/>'
        )

    def dot(self, x: float, y: float, colour: str) -> str:
        return f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.2" fill="{colour}"/>'

    def labels(self, items: list[tuple[float, str, str | None]]) -> str:
        """Texts at the right edge, each close to its (value, text, colour), without overlaps."""
        items = sorted(items, key=lambda item: self.y(item[0]))
        wanted = [self.y(value) + 4 for value, _, _ in items]
        places = spread(wanted, LINE_HEIGHT, self.top + 4, self.y_end + 4)
        return "".join(
            text(self.x_end + 6, y, words, colour=colour)
            for y, (_, words, colour) in zip(places, items, strict=True)
        )

    def caption(self, words: str) -> str:
        """The name of the vertical axis, above the frame."""
        return text(0, self.top - 9, words, opacity=1)


def stroke(x1: float, y1: float, x2: float, y2: float, opacity: float, dashes: str = "") -> str:
    """A thin straight line; `dashes` is an SVG dash pattern."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="currentColor" opacity="{opacity}"{dashed}/>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line with a head at its end."""
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    x, y = x2 - 6 * ux, y2 - 6 * uy  # where the head begins
    corners = ((x2, y2), (x - 3 * uy, y + 3 * ux), (x + 3 * uy, y - 3 * ux))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    head = f'<polygon points="{points}" fill="currentColor" opacity="0.7"/>'
    return stroke(x1, y1, x, y, 0.7) + head
