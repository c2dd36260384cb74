"""Lesson 02, Drop the softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch

from ...model import kernels
from ...probes import measure
from ...study.axes import BLUE, ORANGE
from ...study.figures import Box, Chart, Diagram, Heat, Note
from ..explore import explorer, slider
from ..show import TEXT, letters_of
from .exercises.linear import masked_table

HEADS = 4
_SHORTEST = 16  # bytes, where the widget's curves begin


# ---------------------------------------------------------------- the two orders


@cache
def in_chunks(chunk: int) -> Callable:
    """Linear attention by the library, in chunks of `chunk` bytes."""

    def order(q, k, v):
        return kernels.linear_attention(q, k, v, chunk=chunk)[0]

    return order


@cache
def operations_of(order, length: int, width: int) -> int:
    """What four heads take, in multiplications and additions."""
    q, k, v = torch.zeros(3, 1, HEADS, length, width)
    return measure.count_flops(lambda: order(q, k, v))


def milliseconds_of(order, length: int, width: int) -> float:
    """What four heads take, by the clock."""
    q, k, v = torch.zeros(3, 1, HEADS, length, width)
    return 1e3 * measure.median_seconds(lambda: order(q, k, v), repeats=3)


def cheaper_from(lengths, table, chunks) -> float | None:
    """The length from which chunks stay cheaper, or None if the table is cheaper at the end.

    Times are noisy and may cross more than once, so it is the last crossing that counts.
    """
    dearer = [i for i, (a, b) in enumerate(zip(table, chunks, strict=True)) if a <= b]
    last = dearer[-1] if dearer else 0
    return measure.crossover(lengths[last:], table[last:], chunks[last:])


# ---------------------------------------------------------------- pictures


def triangle(chunk: int, text: bytes = TEXT) -> list[tuple[Heat, Diagram]]:
    """Where chunks compute a small table (blue), and what they read from the state (orange)."""
    letters = letters_of(text)
    of = torch.arange(len(text)) // chunk  # the chunk of each byte
    table, past = (of[:, None] == of).tril(), of[:, None] > of
    heat = Heat(
        f"the triangle in chunks of {chunk}",
        (table.int() - 0.4 * past.int()).tolist(),
        letters,
        letters,
        said=f"In chunks of {chunk}, {table.sum()} pairs are in small tables and {past.sum()} "
        "are read from S.",
    )
    boxes, arrows = {}, []
    for i, start in enumerate(range(0, len(text), chunk)):
        end = min(start + chunk, len(text))
        boxes[f"chunk {i}"] = Box("".join(letters[start:end]), 0, 2 * i, 0.8, BLUE)
        boxes[f"S {i}"] = Box(f"S of {end} bytes", 1.2, 2 * i + 1, 1.2, ORANGE)
        arrows += [(f"chunk {i}", f"S {i}")]
        if i:
            arrows += [(f"S {i - 1}", f"S {i}"), (f"S {i - 1}", f"chunk {i}")]
    return [(heat, Diagram("what is carried from chunk to chunk", boxes, arrows))]


# ---------------------------------------------------------------- widget


@explorer(
    "Which chunk is best for counting, and which for your clock?",
    width=slider("head width", [8, 16, 32, 64, 128]),
    length=slider("longest", [128, 256, 512, 1024]),
    chunk=slider("chunk", [16, 32, 64, 128]),
)
def race_orders(width: int = 64, length: int = 1024, chunk: int = 32) -> Iterator[list]:
    """Both orders at doubling lengths: one page for each length, up to the whole picture."""
    orders = {"table": masked_table, "chunks": in_chunks(chunk)}
    lengths, work, times = [], {name: [] for name in orders}, {name: [] for name in orders}
    while not lengths or lengths[-1] < length:
        lengths.append(2 * lengths[-1] if lengths else _SHORTEST)
        for name, order in orders.items():
            work[name].append(operations_of(order, lengths[-1], width))
            times[name].append(milliseconds_of(order, lengths[-1], width))
        said = [f"counted: {since(lengths, work)}", f"measured: {since(lengths, times)}"]
        yield [
            Chart(along(lengths, work), "length in bytes", "operations, counted"),
            Chart(along(lengths, times), "length in bytes", "milliseconds, measured"),
            Note(f"Heads {width} wide: where chunks of {chunk} become cheaper", said),
        ]


def along(lengths, curves):
    return {name: list(zip(lengths, ys, strict=True)) for name, ys in curves.items()}


def since(lengths, curves) -> str:
    """From which length the chunks are cheaper, in words."""
    found = cheaper_from(lengths, curves["table"], curves["chunks"])
    return f"not up to {lengths[-1]:,} bytes" if found is None else f"from {found:,.0f} bytes"
